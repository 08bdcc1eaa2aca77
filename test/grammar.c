/*
 * grammar.c - two parsers of requests, which must agree.
 *
 *     make test-grammar
 *
 * One is that of estoraje.c, which is included. The other was written from the
 * grammar of RFC 9112 alone, in another manner: a table of states, which takes
 * one byte after the other and knows no lines, and, for what some fields say
 * (RFC 9110), regular expressions. Requests are made up from what the grammar
 * has, and then spoilt here and there; they come in streams of up to three. Of
 * each stream both must say the same: which requests are whole and taken, with
 * which bytes as bodies, what range and which types, where the next one begins,
 * and whether what comes then is refused or not all there. The program reads
 * each stream twice, in one piece and in several.
 *
 * Where the program is stricter or laxer than the grammar, so is the table, and
 * says why. What a line is refused for the program says when it has all of the
 * line, the table at once: so what is refused by the table alone must be by the
 * program, too, when a few line ends follow.
 *
 * Environment: SEED=n repeats the stream of a run that printed it, TORTURE=1
 * asks for ten million.
 *
 * Chapters: Random streams - The table - The program - The comparison.
 */
#define main estoraje_main
#include "../estoraje.c"
#undef main

#include <regex.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* What was read of a stream: one request, and what is there of it. */
enum outcome { TAKEN, BROKEN, PARTIAL };

struct reading {
    enum outcome outcome;
    size_t next;     /* where the next request begins */
    struct buf body; /* to be freed */
    /* Of its fields: the range, if it is one; the etag of If-Range, or 0;
       whether it could be stored, by Content-Type and Content-Encoding, and
       how much of Content-Type is kept. */
    bool ranged, stored;
    struct range range;
    uint64_t if_range;
    size_t type;
};

/* ------------------------------------------------------- Random streams */

static uint64_t random_state;

/* A number below n: a linear congruential generator, whose high bits are
   good. */
static unsigned below(unsigned n) {
    random_state = random_state * UINT64_C(6364136223846793005) +
                   UINT64_C(1442695040888963407);
    return (unsigned)((random_state >> 33) % n);
}

/* One of a list of texts; mostly the first one, so that most of a request is as
   it should be. */
#define ONE_OF(...)                            \
    one_of((const char *const[]){__VA_ARGS__}, \
           sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *))

#define ANY_OF(...)                            \
    any_of((const char *const[]){__VA_ARGS__}, \
           sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *))

static const char *any_of(const char *const *texts, size_t n) {
    return texts[below((unsigned)n)];
}

static const char *one_of(const char *const *texts, size_t n) {
    return below(16) > 0 ? texts[0] : any_of(texts, n);
}

/* Adds a long run of one byte, near one of the limits. */
static void stream_fill(struct buf *b) {
    static const unsigned sizes[] = {10,   990,  1010,  1018, 1021,
                                     1024, 1030, 8100,  8150, 8180,
                                     8192, 8200, 16300, 16400};
    unsigned n = sizes[below(COUNT(sizes))] + below(12);

    memset(buf_grow(b, n), "aA0:/ "[below(6)], n);
}

/* Adds a target. */
static void stream_target(struct buf *b) {
    buf_text(b, ONE_OF("/", "/", "", "*", "http://", "HTTP://", "https://",
                       "h:80", "//", "?", "/a?b=c"));
    buf_text(b,
             ONE_OF("key", "h", "h:80/k", "[::1]/", "[::1", "a@h/", "", "%41",
                    "%", "#", "h?", ":80/", "x:y", "[1::2:3]:80", "[1:2]/"));
    if (below(200) == 0)
        stream_fill(b);
}

/* Adds a field that says nothing of the body. */
static void stream_field(struct buf *b) {
    buf_text(b, ONE_OF("X", "x-long-name", "Connection", "Expect", "Range", "",
                       "Content-Type", "If-Match", " X", "X ", "X\t", "Hos",
                       "Host", "Content-Lengt", "\x80", "Transfer-Encodings"));
    buf_text(b, ONE_OF(": ", ":", " :", "", "::", ":\t "));
    buf_text(b, ONE_OF("a", "", "100-continue", "close", "a, b", "\"q\"",
                       "\xff", "a\tb", "a:b", "h"));
    if (below(400) == 0)
        stream_fill(b);
    buf_text(b, ONE_OF("\r\n", " \r\n", "\t \r\n", "\r\n ", "\r\n\t", "\n",
                       "\r", "\r\r\n"));
}

/* Adds a field that says what is wanted of the value, or what it is. */
static void stream_meaning(struct buf *b) {
    static const char *const names[] = {"Range", "If-Range", "Content-Type",
                                        "Content-Encoding", "Content-Range"};
    unsigned name = below(33) / 8, n = below(3);

    buf_print(b, "%s: ", names[name]);
    if (below(3) == 0)
        n += 3; /* a guess */
    else if (name == 0)
        buf_text(b, ONE_OF("bytes=1-", "bytes=", "Bytes=3-", "bytes=-"));
    else if (name == 1)
        buf_text(b, ONE_OF("\"00a1b2c3d4e5f607\"", "W/", "\"00a1b2c3d4e5"));
    else if (name == 2)
        buf_text(b,
                 ONE_OF("a/b;c=d", "a/b", "application/x-www-form-urlencoded",
                        "a/b;c=\"d", "a/b;c=\"\\\"", "a/b; ", "a"));
    while (n-- > 0)
        buf_text(b, ANY_OF("bytes", "=", "bytes=", "0-", "-5", "1-2", "9", "-",
                           ",", " ", "\t", "Byte", "s=", "W/", "\"", "\"00a1",
                           "b2c3", "d4e5", "0f6a\"", "a/b", "/", ";", "c=d",
                           "=\"e", "\\", "f\"", "identity", "gzip", "\xe9",
                           "18446744073709551615", "18446744073709551616"));
    buf_text(b, "\r\n");
}

/* Adds a chunked body. */
static void stream_chunks(struct buf *b) {
    static const char bytes[] = "0\r\n\r\nGET / HTTP/1.1\r\n";

    for (unsigned chunks = below(4); chunks > 0; chunks--) {
        unsigned n = below(18) + 1;

        buf_text(b, ONE_OF("", "0", "00000000000000000000", "+", "-", "0x", " ",
                           "1", "ffffffffffffffff", "f"));
        buf_print(b, below(2) == 0 ? "%x" : "%X", n);
        buf_text(b, ONE_OF("", ";a=b", ";", " ;a", "\t;a=\"b\"", " ", ",", "g",
                           ";\x80", ";a\r", "  ; b"));
        if (below(100) == 0)
            stream_fill(b);
        buf_text(b, ONE_OF("\r\n", "\n", "\r", "\r\r\n"));
        buf_add(b, bytes, n);
        buf_text(b, ONE_OF("\r\n", "\n", "", "\r", "x\r\n", "\r\n\r\n"));
    }
    buf_text(b, ONE_OF("0\r\n", "000\r\n", "0;a=b\r\n", "0 \r\n", "0\n", "",
                       "\r\n", "00 ;\r\n"));
    for (unsigned trailers = below(3); trailers > 0; trailers--)
        stream_field(b);
    buf_text(b, ONE_OF("\r\n", "\n", "\r", "", "x\r\n"));
}

/* Adds one request. */
static void stream_request(struct buf *b) {
    bool chunked = false;
    unsigned length = 0;

    buf_text(b, ONE_OF("", "\r\n", "\r\n\r\n", "\n", " ", "\r"));
    buf_text(b, ONE_OF("GET", "PUT", "POST", "get", "OPTIONS", "CONNECT", "",
                       "A!#$%&'*+-.^_`|~z", "G(T", "PRI"));
    if (below(1000) == 0)
        stream_fill(b);
    buf_text(b, ONE_OF(" ", "  ", "\t", ""));
    stream_target(b);
    buf_text(b, ONE_OF(" ", "  ", "\t", ""));
    buf_text(b, ONE_OF("HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/1",
                       "http/1.1", "HTTP/1.10", "HTTP/1.1 ", "HTTP/01.1"));
    buf_text(b, ONE_OF("\r\n", "\n", "\r\r\n", "\r"));
    for (unsigned fields = below(3); fields > 0; fields--)
        stream_field(b);
    buf_text(b, ONE_OF("Host: h\r\n", "host:\r\n", "", "Host: [::1]:80\r\n",
                       "Host: h\r\nHost: h\r\n", "Host: a b\r\n",
                       "Host: [1::\r\n", "Host: h:x\r\n",
                       "Host: [::ffff:1.2.3.4"
                       "]\r\n",
                       "Host: [1:2:3:4:5:6:7:8]\r\n", "Host: h/\r\n"));
    if (below(3) > 0) {
        length = below(20);
        buf_text(b, ONE_OF("Content-Length: ", "content-length:",
                           "Content-Length : ",
                           "Content-Length: 1\r\n"
                           "Content-Length: ",
                           "Content-Length: +",
                           "Content-Length: 0000000000000000000000",
                           "Content-Length: 1844674407370955161"));
        buf_print(b, "%u", length);
        buf_text(b,
                 ONE_OF("\r\n", " \r\n", ", 1\r\n", "a\r\n", "\n", ".0\r\n"));
    }
    for (unsigned fields = below(3); fields > 0; fields--)
        stream_meaning(b);
    if (length == 0 || below(20) == 0) {
        chunked = below(2) > 0;
        if (chunked)
            buf_text(b, ONE_OF("Transfer-Encoding: chunked\r\n",
                               "transfer-encoding:CHUNKED \r\n",
                               "Transfer-Encoding: gzip, chunked\r\n",
                               "Transfer-Encoding: chunked, gzip\r\n",
                               "Transfer-Encoding:\r\n",
                               "Transfer-Encoding: chunked\r\n"
                               "Transfer-Encoding: chunked\r\n"));
    }
    for (unsigned fields = below(3); fields > 0; fields--)
        stream_field(b);
    buf_text(b, ONE_OF("\r\n", "\n", "\r", "", "\r\r\n"));
    if (chunked)
        stream_chunks(b);
    else
        buf_add(b, "0\r\n\r\nGET / HTTP/1.1\r\n", length);
}

/* Spoils a stream at one place. */
static void stream_spoil(struct buf *b) {
    static const char odd[] =
        "\r\n \t:;,\"/#?%@[]+-_.0159afAFxXgG\0\x7f\x80\xff";
    unsigned n = (unsigned)b->n, at, to, more;

    if (n < 2)
        return;
    at = below(n);
    to = below(n);
    more = below(n - at) % 12 + 1;
    switch (below(5)) {
    case 0: /* another byte */
        b->p[at] = (uint8_t)odd[below(sizeof odd - 1)];
        break;
    case 1: /* some less */
        more = more < n - at ? more : n - at;
        memmove(b->p + at, b->p + at + more, n - at - more);
        b->n -= more;
        break;
    case 2: /* one more */
        buf_grow(b, 1);
        memmove(b->p + at + 1, b->p + at, n - at);
        b->p[at] = (uint8_t)odd[below(sizeof odd - 1)];
        break;
    case 3: /* some of it again, elsewhere */
        more = more < n - to ? more : n - to;
        memmove(b->p + at, b->p + to, more < n - at ? more : n - at);
        break;
    default: /* the end is missing */
        b->n = at + 1;
    }
}

/* The stream of a seed: most are spoilt at a place or two. */
static void stream_make(struct buf *b, uint64_t seed) {
    random_state = seed * UINT64_C(0x9E3779B97F4A7C15);
    b->n = 0;
    for (unsigned requests = below(3) + 1; requests > 0; requests--)
        stream_request(b);
    for (unsigned spoils = below(3); spoils > 0; spoils--)
        stream_spoil(b);
}

/* ------------------------------------------------------------- The table
 *
 * A row says: in this state, one of these bytes leads to that state. What is in
 * no row is refused. In a set, a-z is a range.
 *
 * Laxer than the grammar: a target has any visible ASCII but a # (browsers send
 * many a character bare), and an extension of a chunk has any text (nobody
 * looks at it, and where it ends is beyond doubt). Stricter: line ends are
 * CR LF, each field that frames is there once at most, nothing is folded, a
 * host is not percent-encoded, and the limits of design.
 */

enum state {
    EMPTY,
    EMPTY_LF,
    METHOD,
    TARGET_1,
    TARGET,
    V_H,
    V_T,
    V_T2,
    V_P,
    V_SLASH,
    V_1,
    V_DOT,
    V_MINOR,
    V_CR,
    LINE_LF,
    LINE,
    NAME,
    OWS,
    VALUE,
    HEAD_LF,
    DATA,
    C_SIZE_1,
    C_SIZE,
    C_BLANK,
    C_EXT,
    C_SIZE_LF,
    C_DATA,
    C_CR,
    C_LF,
    TRAILER,
    T_NAME,
    T_VALUE,
    T_LF,
    END_LF,
    WHOLE,
    STATES
};

#define TCHAR    "!#$%&'*+.^_`|~0-9A-Za-z-"
#define ANY_TEXT "\t -~\x80-\xff"
#define BLANK    " \t"
#define HEX      "0-9A-Fa-f"
#define VISIBLE  "!\"$-~" /* but # */

static const struct row {
    enum state in;
    const char *bytes;
    enum state to;
} rows[] = {
    {EMPTY, "\r", EMPTY_LF},
    {EMPTY_LF, "\n", EMPTY},
    {EMPTY, TCHAR, METHOD},
    {METHOD, TCHAR, METHOD},
    {METHOD, " ", TARGET_1},
    {TARGET_1, VISIBLE, TARGET},
    {TARGET, VISIBLE, TARGET},
    {TARGET, " ", V_H},
    {V_H, "H", V_T},
    {V_T, "T", V_T2},
    {V_T2, "T", V_P},
    {V_P, "P", V_SLASH},
    {V_SLASH, "/", V_1},
    {V_1, "1", V_DOT},
    {V_DOT, ".", V_MINOR},
    {V_MINOR, "0-9", V_CR},
    {V_CR, "\r", LINE_LF},
    {LINE_LF, "\n", LINE},
    {LINE, TCHAR, NAME},
    {NAME, TCHAR, NAME},
    {NAME, ":", OWS},
    {OWS, BLANK, OWS},
    {OWS, "!-~\x80-\xff", VALUE},
    {OWS, "\r", LINE_LF},
    {VALUE, ANY_TEXT, VALUE},
    {VALUE, "\r", LINE_LF},
    {LINE, "\r", HEAD_LF},
    {HEAD_LF, "\n", DATA}, /* or C_SIZE_1, or WHOLE: head_means() */

    {C_SIZE_1, HEX, C_SIZE},
    {C_SIZE, HEX, C_SIZE},
    {C_SIZE, BLANK, C_BLANK},
    {C_SIZE, ";", C_EXT},
    {C_SIZE, "\r", C_SIZE_LF},
    {C_BLANK, BLANK, C_BLANK},
    {C_BLANK, ";", C_EXT},
    {C_EXT, ANY_TEXT, C_EXT},
    {C_EXT, "\r", C_SIZE_LF},
    {C_SIZE_LF, "\n", C_DATA}, /* or TRAILER, for a size of 0 */
    {C_CR, "\r", C_LF},
    {C_LF, "\n", C_SIZE_1},
    {TRAILER, TCHAR, T_NAME},
    {T_NAME, TCHAR, T_NAME},
    {T_NAME, ":", T_VALUE},
    {T_VALUE, ANY_TEXT, T_VALUE},
    {T_VALUE, "\r", T_LF},
    {T_LF, "\n", TRAILER},
    {TRAILER, "\r", END_LF},
    {END_LF, "\n", WHOLE},
};

#define REFUSE STATES /* where the table has no row */
static unsigned char table[STATES][256];

/* Fills in the table from the rows. */
static void table_make(void) {
    memset(table, REFUSE, sizeof table);
    for (size_t i = 0; i < COUNT(rows); i++)
        for (const char *p = rows[i].bytes; *p != '\0'; p++) {
            unsigned first = (unsigned char)*p, last = first;

            if (p[1] == '-' && p[2] != '\0') {
                p += 2;
                last = (unsigned char)*p;
            }
            for (unsigned c = first; c <= last; c++)
                table[rows[i].in][c] = (unsigned char)rows[i].to;
        }
}

/* Fields that may be there once, at most, those first that frame. */
enum {
    HOST,
    LENGTH,
    CODING,
    EXPECT,
    RANGE,
    IF_RANGE,
    TYPE,
    VALUE_CODING,
    PART
};
static const char *const once[] = {
    "Host",          "Content-Length", "Transfer-Encoding", "Expect",
    "Range",         "If-Range",       "Content-Type",      "Content-Encoding",
    "Content-Range", "If-Match",       "If-None-Match",     "Authorization",
    "Origin",        "Estoraje",
};

/* A text that grows; no head is longer. */
struct text {
    size_t n;
    char p[HEAD_MAX + 2];
};

/* Adds a byte, and a NUL behind it. */
static void text_add(struct text *t, uint8_t c) {
    t->p[t->n++] = (char)c;
    t->p[t->n] = '\0';
}

/* What the table has seen of a request. */
struct seen {
    struct text method, target, name, value;
    char minor;              /* of the version */
    bool once[COUNT(once)];  /* which of these fields are there */
    bool odd;                /* something else than 100-continue is expected */
    bool bad;                /* a field has no meaning */
    unsigned long long left; /* of the data, or of a chunk */
    struct reading says;     /* the fields */
};

/* Whether all of a text is of a set. */
static bool all_of(const char *text, const char *set) {
    return strspn(text, set) == strlen(text);
}

/* Whether a text is an address of IPv6, by counting its groups (RFC 3986,
   3.2.2): eight, or fewer with one ::. The last two may be one of IPv4. */
static bool address_of_6(char *text) {
    char *gap = strstr(text, "::"), *save = NULL, *dotted = NULL;
    unsigned groups = 0;

    if (strstr(text, ":::") != NULL || (gap && strstr(gap + 1, "::") != NULL))
        return false;
    if (text[0] == '\0' || (text[0] == ':' && gap != text))
        return false;
    if (text[strlen(text) - 1] == ':' && (gap == NULL || gap[2] != '\0'))
        return false;
    if (strchr(text, '.') != NULL) {
        dotted = strrchr(text, ':');
        if (dotted == NULL)
            return false;
        dotted++;
    }
    for (char *p = dotted; p != NULL && *p != '\0';) {
        size_t n = strspn(p, "0123456789");

        if (n == 0 || n > 3 || (n > 1 && *p == '0') || atoi(p) > 255 ||
            ++groups > 4 || (p[n] != '.' && p[n] != '\0') ||
            (p[n] == '.' && p[n + 1] == '\0'))
            return false;
        p += n + (p[n] == '.');
    }
    if (dotted != NULL) {
        if (groups != 4)
            return false;
        groups = 2;
        *dotted = '\0';
    }
    for (char *p = strtok_r(text, ":", &save); p != NULL;
         p = strtok_r(NULL, ":", &save)) {
        if (strlen(p) > 4 || !all_of(p, "0123456789abcdefABCDEF"))
            return false;
        groups++;
    }
    return gap != NULL ? groups <= 7 : groups == 8;
}

/* Whether a text is [host] or [host]:[port]. It is spoilt. */
static bool host_means(char *text) {
    char *port = NULL;

    if (text[0] == '[') {
        char *end = strchr(text, ']');

        if (end == NULL || (end[1] != '\0' && end[1] != ':'))
            return false;
        *end = '\0';
        port = end[1] == ':' ? end + 2 : NULL;
        if (!address_of_6(text + 1))
            return false;
    } else {
        port = strchr(text, ':');
        if (port != NULL)
            *port++ = '\0';
        if (!all_of(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                          "0123456789-._~!$&'()*+,;="))
            return false;
    }
    return port == NULL || all_of(port, "0123456789");
}

/* Whether the target has a form that the method may have. It is spoilt. */
static bool target_means(struct seen *s) {
    char *target = s->target.p, *end;

    if (strcmp(target, "*") == 0)
        return strcmp(s->method.p, "OPTIONS") == 0;
    if (strcmp(s->method.p, "CONNECT") == 0)
        return host_means(target);
    if (target[0] == '/')
        return true;
    if (strncasecmp(target, "http://", 7) != 0)
        return false;
    end = target + 7;
    end[strcspn(end, "/?")] = '\0';
    return end[0] != '\0' && end[0] != ':' && host_means(end);
}

/* ---- What fields say: the grammars of RFC 9110, 14.1.1, 8.8.3, 8.3.1 and
   5.6. What is malformed in Range or If-Range says nothing. */

#define REGEX_TOKEN "[A-Za-z0-9!#$%&'*+.^_`|~-]+"
#define REGEX_OWS   "[ \t]*"

enum { ONE_RANGE, ONE_ETAG, MEDIA_TYPE, IDENTITY, EXPRESSIONS };
static const char *const expressions[EXPRESSIONS] = {
    [ONE_RANGE] = "^[Bb][Yy][Tt][Ee][Ss]=[ \t,]*([0-9]*)-([0-9]*)[ \t,]*$",
    [ONE_ETAG] = "^\"[0-9a-f]{16}\"$",
    [MEDIA_TYPE] = "^" REGEX_TOKEN "/" REGEX_TOKEN "(" REGEX_OWS ";" REGEX_OWS
                   "(" REGEX_TOKEN "=(" REGEX_TOKEN
                   "|\"([^\"\\\\]|\\\\.)*\"))?)*" REGEX_OWS "$",
    [IDENTITY] = "^([Ii][Dd][Ee][Nn][Tt][Ii][Tt][Yy])?$",
};
static regex_t compiled[EXPRESSIONS];

/* Whether a text is what an expression has. */
static bool text_is(const char *text, int expression, regmatch_t *found) {
    return regexec(&compiled[expression], text, 3, found, 0) == 0;
}

/* The number in a text, or the largest. */
static uint64_t number_in(const char *text, const regmatch_t *at) {
    errno = 0;
    return strtoull(text + at->rm_so, NULL, 10); /* at most ULLONG_MAX */
}

/* Notes what a Range says. */
static void range_means(struct reading *says, const char *value) {
    regmatch_t m[3];
    bool first, last;

    if (!text_is(value, ONE_RANGE, m))
        return;
    first = m[1].rm_so < m[1].rm_eo;
    last = m[2].rm_so < m[2].rm_eo;
    says->range = (struct range){!first, 0, UINT64_MAX};
    if (first)
        says->range.first = number_in(value, &m[1]);
    if (last)
        says->range.last = number_in(value, &m[2]);
    says->ranged =
        (first || last) && (!first || says->range.first <= says->range.last);
}

/* Notes what fields say that are of no account for framing. */
static void value_means(struct reading *says, size_t field, const char *value) {
    regmatch_t m[3];

    if (field == RANGE)
        range_means(says, value);
    if (field == IF_RANGE && text_is(value, ONE_ETAG, m))
        says->if_range = strtoull(value + 1, NULL, 16);
    if (field == PART ||
        (field == VALUE_CODING && !text_is(value, IDENTITY, m)))
        says->stored = false;
    if (field == TYPE && value[0] != '\0') {
        size_t n = strcspn(value, ";");

        if (strlen(value) > 127 || !text_is(value, MEDIA_TYPE, m))
            says->stored = false;
        while (n > 0 && strchr(BLANK, value[n - 1]) != NULL)
            n--;
        says->type =
            n == 33 && strncasecmp(value, "application/x-www-form-urlencoded",
                                   n) == 0
                ? 0
                : strlen(value);
    }
}

/* A field is at its end: what does it mean? */
static void field_means(struct seen *s) {
    char *value = s->value.p;
    size_t n = s->value.n, i = 0;

    while (n > 0 && strchr(BLANK, value[n - 1]) != NULL)
        n--;
    value[n] = '\0';
    while (i < COUNT(once) && strcasecmp(s->name.p, once[i]) != 0)
        i++;
    if (i == COUNT(once))
        return;
    s->bad = s->bad || s->once[i];
    s->once[i] = true;
    if (i == HOST) {
        s->bad = s->bad || !host_means(value);
    } else if (i == LENGTH) {
        errno = 0;
        s->left = strtoull(value, NULL, 10);
        s->bad = s->bad || n == 0 || !all_of(value, "0123456789") || errno != 0;
    } else if (i == CODING) {
        s->bad = s->bad || strcasecmp(value, "chunked") != 0;
    } else if (i == EXPECT) {
        s->odd = n > 0 && strcasecmp(value, "100-continue") != 0;
    }
    value_means(&s->says, i, value);
}

/* The head is at its end: the state that comes next. */
static unsigned head_means(struct seen *s) {
    bool old = s->minor == '0';

    if (s->bad || !target_means(s) || (!old && (!s->once[HOST] || s->odd)) ||
        (s->once[CODING] && (old || s->once[LENGTH])))
        return REFUSE;
    return s->once[CODING] ? C_SIZE_1 : s->left > 0 ? DATA : WHOLE;
}

/* One more digit of a chunk's size: the state that comes next. */
static unsigned size_digit(struct seen *s, uint8_t c) {
    if (s->left >> 60 != 0)
        return REFUSE;
    s->left =
        s->left * 16 + (unsigned)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    return C_SIZE;
}

/* One step of the table, with what it means: the state that comes next. */
static unsigned table_step(struct seen *s, unsigned in, uint8_t c) {
    unsigned to = table[in][c];

    if (to == METHOD)
        text_add(&s->method, c);
    if (to == TARGET)
        text_add(&s->target, c);
    if (to == V_CR)
        s->minor = (char)c;
    if (to == NAME && in == LINE)
        s->name.n = s->value.n = 0;
    if (to == OWS)
        text_add(&s->value, ' '), s->value.n = 0;
    if (to == NAME)
        text_add(&s->name, c);
    if (to == VALUE)
        text_add(&s->value, c);
    if (to == LINE_LF && in != V_CR)
        field_means(s);
    if (to == DATA)
        return head_means(s);
    if (to == C_SIZE)
        return size_digit(s, c);
    return to == C_DATA && s->left == 0 ? TRAILER : to;
}

/* Reads one request by the table. Limits count bytes: of the head and of its
   first line with all line ends, of a line of a chunk with its CR, of trailers
   without. */
static struct reading table_read(const uint8_t *p, size_t n) {
    size_t i = 0, head = 0, line = 0, trailers = 0, lines = 0;
    static struct seen s;
    unsigned in = EMPTY;

    s.method.n = s.target.n = 0;
    memset(s.once, 0, sizeof s.once);
    s.odd = s.bad = false;
    s.left = 0;
    s.says = (struct reading){.outcome = PARTIAL, .stored = true};
    for (; i < n && in != WHOLE && in != REFUSE; i++) {
        unsigned was = in;

        if (in == DATA || in == C_DATA) {
            buf_add(&s.says.body, p + i, 1);
            if (--s.left == 0)
                in = in == DATA ? WHOLE : C_CR;
            continue;
        }
        in = table_step(&s, in, p[i]);
        line = p[i] == '\n' ? 0 : line + 1;
        head += was < DATA && in >= METHOD;
        trailers += was >= TRAILER && p[i] != '\r' && p[i] != '\n';
        if ((was < DATA && (head > 16384 || (lines == 0 && head > 8194))) ||
            (was > DATA && (line > 1024 || trailers > 8192)))
            in = REFUSE;
        lines += p[i] == '\n' && was >= METHOD;
    }
    if (in == WHOLE || in == REFUSE)
        s.says.outcome = in == WHOLE ? TAKEN : BROKEN;
    s.says.next = i;
    return s.says;
}

/* ----------------------------------------------------------- The program */

/* Notes what the fields of a head say. */
static void fields_say(const struct http *h, struct reading *r) {
    struct slice type = {0};

    r->ranged = range_parse(h->range, &r->range);
    r->if_range = etag_parse(h->if_range);
    r->stored = write_check(h, &type) == NULL;
    r->type = type.n;
}

/* Reads one request as a connection does, in pieces of up to so many bytes, or
   in one for 0; each time the bytes stand elsewhere, and end where they end. */
static struct reading program_read(const uint8_t *p, size_t n, unsigned piece) {
    struct reading r = {.outcome = PARTIAL};
    size_t have = 0, scanned = 0, end;
    struct chunks k = {.state = CHUNK_SIZE};
    const char *refusal = NULL;
    bool body = false;
    struct slice data;
    struct http h;
    ssize_t used;

    while (r.outcome == PARTIAL && have < n) {
        uint8_t *copy;

        have += piece == 0 ? n : 1 + below(piece);
        have = have < n ? have : n;
        copy = malloc(have - r.next);
        memcpy(copy, p + r.next, have - r.next);
        data = (struct slice){copy, have - r.next};
        if (!body) {
            while (scanned == 0 && slice_begins(data, "\r\n"))
                data = slice_skip(data, 2);
            end = http_head_end(data.p, data.n, &scanned, &refusal);
            if (end > 0)
                refusal = http_parse(data.p, end, true, &h);
            data = slice_skip(data, end);
            if ((body = end > 0 && refusal == NULL)) {
                k = chunks_begin(&h);
                fields_say(&h, &r);
            }
        }
        for (used = 1; body && used > 0 && k.state != CHUNK_END;) {
            struct slice some;

            used = chunks_read(&k, data.p, data.n, &some);
            if (used > 0) {
                buf_add(&r.body, some.p, some.n);
                data = slice_skip(data, (size_t)used);
            } else if (used < 0) {
                refusal = "400";
            }
        }
        r.next = have - data.n;
        free(copy);
        if (refusal != NULL)
            r.outcome = BROKEN;
        else if (body && k.state == CHUNK_END)
            r.outcome = TAKEN;
    }
    return r;
}

/* -------------------------------------------------------- The comparison */

static struct {
    uint64_t streams, taken, refused, unfinished, bodies, ranges, if_ranges,
        types, unstored;
} tally;

static const char *const outcomes[] = {"taken", "refused", "not all there"};

/* Ends the test with what the two made of a stream. */
static void __attribute__((noreturn))
differ(uint64_t seed, const struct buf *b, size_t from,
       const struct reading *table_says, const struct reading *program_says) {
    fprintf(stderr, "grammar: they differ at byte %zu of\n", from);
    for (size_t i = 0; i < b->n; i++) {
        size_t run = i;

        while (run < b->n && b->p[run] == b->p[i])
            run++;
        if (run - i > 20) {
            fprintf(stderr, "{%zu*%c}", run - i, b->p[i]);
            i = run - 1;
        } else if (b->p[i] == '\n' && i > 0 && b->p[i - 1] == '\r') {
            fprintf(stderr, "\\n\n");
        } else if (b->p[i] >= ' ' && b->p[i] < 127 && b->p[i] != '\\') {
            fputc(b->p[i], stderr);
        } else {
            fprintf(stderr, "\\x%02x", b->p[i]);
        }
    }
    fprintf(stderr, "\ngrammar: repeat it with SEED=%" PRIu64 "\n", seed);
    for (int i = 0; i < 2; i++) {
        const struct reading *r = i == 0 ? table_says : program_says;

        fprintf(stderr,
                "%s: %s, next at %zu, a body of %zu, range %d %d %" PRIu64
                "-%" PRIu64 ", if it is %" PRIx64 ", stored %d, type of %zu\n",
                i == 0 ? "the table" : "the program", outcomes[r->outcome],
                r->next, r->body.n, r->ranged, r->range.suffix, r->range.first,
                r->range.last, r->if_range, r->stored, r->type);
    }
    _Exit(1);
}

/* Whether two readings are the same. */
static bool reading_same(const struct reading *a, const struct reading *b) {
    return a->outcome == b->outcome &&
           (a->outcome != TAKEN ||
            (a->next == b->next &&
             slice_equal(buf_slice(&a->body), buf_slice(&b->body)) &&
             a->ranged == b->ranged && a->if_range == b->if_range &&
             (!a->ranged || (a->range.suffix == b->range.suffix &&
                             a->range.first == b->range.first &&
                             a->range.last == b->range.last)) &&
             a->stored == b->stored && (!a->stored || a->type == b->type)));
}

/* Reads a stream from one place on by both, and compares. Where the next
   request begins, or 0: there is none. */
static size_t stream_compare(uint64_t seed, const struct buf *b, size_t from) {
    const uint8_t *p = b->p + from;
    size_t n = b->n - from, next;
    struct reading t = table_read(p, n), whole = program_read(p, n, 0);
    struct reading pieces = program_read(p, n, 1 + below(40));
    struct buf ended = {0};

    if (!reading_same(&whole, &pieces))
        differ(seed, b, from, &whole, &pieces);
    if (t.outcome == BROKEN && whole.outcome == PARTIAL) {
        buf_add(&ended, p, n);
        buf_text(&ended, "\r\n\r\n\r\n");
        buf_free(&whole.body);
        whole = program_read(ended.p, ended.n, 0);
        buf_free(&ended);
    }
    if (!reading_same(&t, &whole))
        differ(seed, b, from, &t, &whole);
    tally.taken += t.outcome == TAKEN;
    tally.refused += t.outcome == BROKEN;
    tally.unfinished += t.outcome == PARTIAL;
    tally.bodies += t.outcome == TAKEN && t.body.n > 0;
    tally.ranges += t.outcome == TAKEN && t.ranged;
    tally.if_ranges += t.outcome == TAKEN && t.if_range != 0;
    tally.types += t.outcome == TAKEN && t.stored && t.type > 0;
    tally.unstored += t.outcome == TAKEN && !t.stored;
    next = t.outcome == TAKEN ? from + t.next : 0;
    buf_free(&t.body);
    buf_free(&whole.body);
    buf_free(&pieces.body);
    return next;
}

int main(void) {
    const char *given = getenv("SEED"), *torture = getenv("TORTURE");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 10) : now_us() << 8;
    uint64_t streams = given != NULL ? 1 : torture != NULL ? 10000000 : 100000;
    struct buf b = {0};

    setvbuf(stdout, NULL, _IOLBF, 0);
    table_make();
    for (int i = 0; i < EXPRESSIONS; i++)
        if (regcomp(&compiled[i], expressions[i], REG_EXTENDED) != 0)
            die(expressions[i]);
    printf("%" PRIu64 " streams from SEED=%" PRIu64 "\n", streams, seed);
    for (; tally.streams < streams; tally.streams++) {
        size_t from = 0;

        stream_make(&b, seed + tally.streams);
        do
            from = stream_compare(seed + tally.streams, &b, from);
        while (from > 0 && from < b.n);
    }
    buf_free(&b);
    printf("requests: %" PRIu64 " taken, %" PRIu64
           " of them with bodies, %" PRIu64 " refused, %" PRIu64
           " not all there\n",
           tally.taken, tally.bodies, tally.refused, tally.unfinished);
    printf("of those taken: %" PRIu64 " ranges, %" PRIu64
           " etags in If-Range, %" PRIu64 " types kept, %" PRIu64
           " not to be stored\n",
           tally.ranges, tally.if_ranges, tally.types, tally.unstored);
    for (int i = 0; i < EXPRESSIONS; i++)
        regfree(&compiled[i]);
    if (streams > 1 &&
        (tally.ranges < streams / 500 || tally.if_ranges < streams / 5000 ||
         tally.types < streams / 100 || tally.unstored < streams / 100 ||
         tally.bodies < streams / 10 || tally.refused < streams / 10 ||
         tally.unfinished < streams / 50)) {
        fprintf(stderr, "grammar: the streams are too much alike\n");
        return 1;
    }
    return 0;
}
