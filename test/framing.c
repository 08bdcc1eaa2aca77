/* framing.c - what is a request, where it ends, and what it is answered

   A table of raw requests.  Each is sent to a real server as a whole, byte by
   byte, and in two pieces, cut at every point: the answers must be those of
   the table, and the same bytes every time.

   To add a row: say what it is about, write the bytes, and run the test; it
   prints what was answered.

     the bytes     KEYNO stands for a key that no other connection uses,
                   {9*x} for xxxxxxxxx, {nul} for a NUL
     the answers   the status of each, with = and the value where one is
                   given, an h before those to HEAD; and how the connection
                   was after them:
                     open    the next request was answered
                     close   the last answer said that it would be closed
                     eof     the request was not all there when it ended
     the field     one that an answer must have: "Name: value", or "!Name"

   After the bytes of each row comes a request for /end, which shows whether
   the server and the row agree on where the row ended. */

#include "harness.h"

enum {
    ROW_MAX = 20000,    /* bytes of a row, all written out */
    CUTS_ALL = 700,     /* a row so long is cut at every point, */
    CUTS_SOME = 60,     /* a longer one at about so many */
    SIDE_BY_SIDE = 64,  /* rows that are sent byte by byte */
    ANSWERS_MAX = 65536 /* bytes of all answers to a row */
};

#define COUNT(table) (sizeof(table) / sizeof(table)[0])
#define END          "\r\n"
#define H1           " HTTP/1.1\r\nHost: h\r\n"
#define GET          "GET /KEYNO" H1
#define PUT          "PUT /KEYNO" H1
#define BACK         GET END /* what was stored */
#define CHUNKED      PUT "Transfer-Encoding: chunked\r\n" END
#define ONE          "1\r\n1\r\n"
#define LAST         "0\r\n" END
#define LENGTH(n)    "Content-Length: " n "\r\n"

static const struct row {
    const char *what, *text, *answers, *field;
} rows[] = {
    /* The request line (RFC 9112, 3). */
    {"a request", BACK, "404 open", 0},
    {"a method is case-sensitive", "get /KEYNO" H1 END, "501 open", 0},
    {"a method that nobody knows", "BREW /KEYNO" H1 END, "501 open", 0},
    {"all that a method may have", "!#$%&'*+-.^_`|~9z /KEYNO" H1 END,
     "501 open", 0},
    {"a method that is no token", "G(T /KEYNO" H1 END, "400 close", 0},
    {"a method with a colon", "GET: /KEYNO" H1 END, "400 close", 0},
    {"no method", " /KEYNO" H1 END, "400 close", 0},
    {"no target", "GET" H1 END, "400 close", 0},
    {"an empty target", "GET  HTTP/1.1\r\nHost: h\r\n" END, "400 close", 0},
    {"two blanks before the target", "GET  /KEYNO" H1 END, "400 close", 0},
    {"two blanks behind it", "GET /KEYNO " H1 END, "400 close", 0},
    {"a tab for a blank", "GET\t/KEYNO" H1 END, "400 close", 0},
    {"a tab behind the target", "GET /KEYNO\tHTTP/1.1\r\nHost: h\r\n" END,
     "400 close", 0},
    {"a blank in the target", "GET /KE YNO" H1 END, "400 close", 0},
    {"a blank first", " GET /KEYNO" H1 END, "400 close", 0},
    {"a blank at the end", "GET /KEYNO HTTP/1.1 \r\nHost: h\r\n" END,
     "400 close", 0},
    {"more words", "GET /KEYNO HTTP/1.1 x\r\nHost: h\r\n" END, "400 close", 0},
    {"words", "garbage\r\n" END, "400 close", 0},
    {"a greeting of TLS", "\x16\x03\x01\x02\x01\xfe\x03\x03\r\n" END,
     "400 close", 0},
    {"no line at all", "no line", "400 close", 0},

    /* Versions (RFC 9112, 2.3; RFC 9110, 2.5). */
    {"no version, as in HTTP/0.9", "GET /KEYNO\r\n" END, "400 close", 0},
    {"a version is case-sensitive", "GET /KEYNO http/1.1\r\nHost: h\r\n" END,
     "400 close", 0},
    {"HTTP/1.0", "GET /KEYNO HTTP/1.0\r\n" END, "404 close", 0},
    {"HTTP/1.2 is taken as 1.1", "GET /KEYNO HTTP/1.2\r\nHost: h\r\n" END,
     "404 open", 0},
    {"HTTP/1.9", "GET /KEYNO HTTP/1.9\r\nHost: h\r\n" END, "404 open", 0},
    {"HTTP/1.2 wants a Host, too", "GET /KEYNO HTTP/1.2\r\n" END, "400 close",
     0},
    {"HTTP/2.0", "GET /KEYNO HTTP/2.0\r\nHost: h\r\n" END, "505 close", 0},
    {"HTTP/0.9", "GET /KEYNO HTTP/0.9\r\nHost: h\r\n" END, "505 close", 0},
    {"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505 close",
     0},
    {"HTTP/1", "GET /KEYNO HTTP/1\r\nHost: h\r\n" END, "400 close", 0},
    {"HTTP/1.", "GET /KEYNO HTTP/1.\r\nHost: h\r\n" END, "400 close", 0},
    {"HTTP/1.10", "GET /KEYNO HTTP/1.10\r\nHost: h\r\n" END, "400 close", 0},
    {"HTTP/11.1", "GET /KEYNO HTTP/11.1\r\nHost: h\r\n" END, "400 close", 0},
    {"HTTP/1.x", "GET /KEYNO HTTP/1.x\r\nHost: h\r\n" END, "400 close", 0},
    {"HTTP /1.1", "GET /KEYNO HTTP /1.1\r\nHost: h\r\n" END, "400 close", 0},
    {"HTTPS/1.1", "GET /KEYNO HTTPS/1.1\r\nHost: h\r\n" END, "400 close", 0},

    /* Empty lines before a request (RFC 9112, 2.2). */
    {"an empty line first", END BACK, "404 open", 0},
    {"three empty lines first", END END END BACK, "404 open", 0},
    {"an empty line behind a body", PUT LENGTH("1") END "1" END BACK,
     "201 200=1 open", 0},
    {"a bare LF first", "\n" BACK, "400 close", 0},
    {"a bare CR first", "\r" BACK, "400 close", 0},
    {"a blank line first", " \r\n" BACK, "400 close", 0},

    /* The target: origin form (RFC 9112, 3.2.1; RFC 3986). */
    {"slashes are part of a key",
     "PUT /KEYNO/a//b/ HTTP/1.1\r\nHost: h\r\n" LENGTH("1") END
     "1" BACK "GET /KEYNO/a//b/" H1 END,
     "201 404 200=1 open", 0},
    {"dots are part of a key",
     "PUT /KEYNO/x/../y" H1 LENGTH("1") END "1GET /KEYNO/y" H1 END
                                            "GET /KEYNO/x/../y" H1 END,
     "201 404 200=1 open", 0},
    {"%XX is a byte, in either case",
     "PUT /KEYNO%2f%4A%4b" H1 LENGTH("1") END "1GET /KEYNO/JK" H1 END,
     "201 200=1 open", 0},
    {"it is decoded once",
     "PUT /KEYNO%2541" H1 LENGTH("1") END "1GET /KEYNOA" H1 END
                                          "GET /KEYNO%2541" H1 END,
     "201 404 200=1 open", 0},
    {"a plus is a plus",
     "PUT /KEYNO+a" H1 LENGTH("1") END "1GET /KEYNO%20a" H1 END
                                       "GET /KEYNO%2Ba" H1 END,
     "201 404 200=1 open", 0},
    {"any byte can be in a key",
     "PUT /KEYNO%00%0d%0A%ff" H1 LENGTH("1") END
     "1GET /KEYNO%00%0d%0a%FF" H1 END,
     "201 200=1 open", 0},
    {"what browsers leave bare",
     "PUT /KEYNO\"<>[\\]^`{|}" H1 LENGTH("1") END
     "1GET /KEYNO%22%3C%3E%5B%5C%5D%5E%60%7B%7C%7D" H1 END,
     "201 200=1 open", 0},
    {"a % without digits", "GET /KEYNO%" H1 END, "400 open", 0},
    {"a % with one digit", "GET /KEYNO%4" H1 END, "400 open", 0},
    {"a % with other letters", "GET /KEYNO%4g" H1 END, "400 open", 0},
    {"a % with a sign", "GET /KEYNO%+4" H1 END, "400 open", 0},
    {"an encoded question mark", "GET /KEYNO%3Funknown" H1 END, "404 open", 0},
    {"an empty query", "GET /KEYNO?" H1 END, "404 open", 0},
    {"a query parameter that nobody knows", "GET /KEYNO?a=b" H1 END, "400 open",
     0},
    {"a fragment", "GET /KEYNO#a" H1 END, "400 close", 0},
    {"a fragment in a query", "GET /KEYNO?consistent#a" H1 END, "400 close", 0},
    {"a control character", "GET /KEYNO\x01" H1 END, "400 close", 0},
    {"a NUL", "GET /KEYNO{nul}" H1 END, "400 close", 0},
    {"a DEL", "GET /KEYNO\x7f" H1 END, "400 close", 0},
    {"a byte that is not ASCII", "GET /KEYNO\xc3\xa9" H1 END, "400 close", 0},
    {"no slash", "GET KEYNO" H1 END, "400 close", 0},
    {"a backslash", "GET \\KEYNO" H1 END, "400 close", 0},
    {"a query alone", "GET ?list" H1 END, "400 close", 0},
    {"a key of 1,024 bytes", "GET /KEYNO{1019*k}" H1 END, "404 open", 0},
    {"of 1,024 encoded bytes", "GET /KEYNO{1018*k}%6b" H1 END, "404 open", 0},
    {"of 1,025 bytes", "GET /KEYNO{1020*k}" H1 END, "400 open", 0},
    {"a request line of 8 KiB", "GET /{8178*k} HTTP/1.1\r\nHost: h\r\n" END,
     "400 open", 0},
    {"and one byte", "GET /{8179*k} HTTP/1.1\r\nHost: h\r\n" END, "414 close",
     0},
    {"a method of 9,000 bytes", "{9000*M} /KEYNO" H1 END, "414 close", 0},
    {"a line that does not end", "GET /{9000*k}", "414 close", 0},

    /* Absolute form, to proxies and from them (RFC 9112, 3.2.2; RFC 9110, 4.2
       and 7.4). */
    {"absolute form", PUT LENGTH("1") END "1GET http://h/KEYNO" H1 END,
     "201 200=1 open", 0},
    {"a scheme in any case", PUT LENGTH("1") END "1GET HTTP://h/KEYNO" H1 END,
     "201 200=1 open", 0},
    {"with a port", "GET http://h:8000/KEYNO" H1 END, "404 open", 0},
    {"with an empty port", "GET http://h:/KEYNO" H1 END, "404 open", 0},
    {"with an address", "GET http://127.0.0.1:80/KEYNO" H1 END, "404 open", 0},
    {"with an address of IPv6", "GET http://[::1]:80/KEYNO" H1 END, "404 open",
     0},
    {"with another host than Host says", "GET http://other/KEYNO" H1 END,
     "404 open", 0},
    {"with no path", "GET http://h" H1 END, "200 open", 0},
    {"with a query and no path", "GET http://h?a=b" H1 END, "400 open", 0},
    {"with a slash that is the key's", "GET http://h//KEYNO" H1 END, "404 open",
     0},
    {"of a path of the system", "GET http://h/_health" H1 END, "200 open", 0},
    {"without Host", "GET http://h/KEYNO HTTP/1.1\r\n" END, "400 close", 0},
    {"with no host", "GET http:///KEYNO" H1 END, "400 close", 0},
    {"with a port and no host", "GET http://:80/KEYNO" H1 END, "400 close", 0},
    {"with a user", "GET http://user@h/KEYNO" H1 END, "400 close", 0},
    {"with a port that is none", "GET http://h:x/KEYNO" H1 END, "400 close", 0},
    {"with half an address", "GET http://[::1/KEYNO" H1 END, "400 close", 0},
    {"with one slash", "GET http:/h/KEYNO" H1 END, "400 close", 0},
    {"https, which this is not", "GET https://h/KEYNO" H1 END, "400 close", 0},
    {"another scheme", "GET ftp://h/KEYNO" H1 END, "400 close", 0},

    /* Authority and asterisk form (RFC 9112, 3.2.3 and 3.2.4). */
    {"CONNECT", "CONNECT h:80" H1 END, "405 open",
     "Allow: GET, HEAD, PUT, POST, DELETE"},
    {"CONNECT to a path", "CONNECT /KEYNO" H1 END, "400 close", 0},
    {"an authority and no CONNECT", "GET h:80" H1 END, "400 close", 0},
    {"OPTIONS *", "OPTIONS *" H1 END, "405 open",
     "Allow: GET, HEAD, PUT, POST, DELETE"},
    {"an asterisk and no OPTIONS", "GET *" H1 END, "400 close", 0},
    {"an asterisk and more", "OPTIONS */KEYNO" H1 END, "400 close", 0},

    /* Host (RFC 9112, 3.2; RFC 9110, 7.2). */
    {"no Host", "GET /KEYNO HTTP/1.1\r\n" END, "400 close", 0},
    {"Host twice", GET "Host: h\r\n" END, "400 close", 0},
    {"two hosts", GET "Host: i\r\n" END, "400 close", 0},
    {"Host twice in HTTP/1.0",
     "GET /KEYNO HTTP/1.0\r\nHost: h\r\nHost: h\r\n" END, "400 close", 0},
    {"an empty Host", "GET /KEYNO HTTP/1.1\r\nHost:\r\n" END, "404 open", 0},
    {"a Host with a port", "GET /KEYNO HTTP/1.1\r\nHost: h.example:80\r\n" END,
     "404 open", 0},
    {"a Host with an address of IPv6",
     "GET /KEYNO HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n" END, "404 open", 0},
    {"an underline", "GET /KEYNO HTTP/1.1\r\nHost: a_b\r\n" END, "404 open", 0},
    {"a Host with a blank", "GET /KEYNO HTTP/1.1\r\nHost: h i\r\n" END,
     "400 close", 0},
    {"a Host with a path", "GET /KEYNO HTTP/1.1\r\nHost: h/\r\n" END,
     "400 close", 0},
    {"a Host with a user", "GET /KEYNO HTTP/1.1\r\nHost: u@h\r\n" END,
     "400 close", 0},
    {"a Host with a scheme", "GET /KEYNO HTTP/1.1\r\nHost: http://h\r\n" END,
     "400 close", 0},
    {"a Host with a port that is none",
     "GET /KEYNO HTTP/1.1\r\nHost: h:8o\r\n" END, "400 close", 0},
    {"a Host with two ports", "GET /KEYNO HTTP/1.1\r\nHost: h:80:80\r\n" END,
     "400 close", 0},
    {"a Host with half an address", "GET /KEYNO HTTP/1.1\r\nHost: [::1\r\n" END,
     "400 close", 0},
    {"a Host with a bad address", "GET /KEYNO HTTP/1.1\r\nHost: [g::]\r\n" END,
     "400 close", 0},
    {"a Host with more behind an address",
     "GET /KEYNO HTTP/1.1\r\nHost: [::1]80\r\n" END, "400 close", 0},
    {"a Host that is not ASCII", "GET /KEYNO HTTP/1.1\r\nHost: \xe9\r\n" END,
     "400 close", 0},
    {"a bad Host in HTTP/1.0", "GET /KEYNO HTTP/1.0\r\nHost: h/\r\n" END,
     "400 close", 0},

    /* Fields (RFC 9112, 5; RFC 9110, 5). */
    {"names in any case",
     "PUT /KEYNO HTTP/1.1\r\nHOST: h\r\ncontent-LENGTH: 1\r\n" END "1" BACK,
     "201 200=1 open", 0},
    {"no blank behind the colon", PUT "Content-Length:1\r\n" END "1" BACK,
     "201 200=1 open", 0},
    {"blanks and tabs around a value",
     PUT "Content-Length: \t 1\t \r\n" END "1" BACK, "201 200=1 open", 0},
    {"an empty value", GET "X:\r\n" END, "404 open", 0},
    {"a value of blanks", GET "X:   \r\n" END, "404 open", 0},
    {"colons, tabs and other bytes in a value", GET "X: a:b\tc \xff\r\n" END,
     "404 open", 0},
    {"all that a name may have", GET "!#$%&'*+-.^_`|~09aZ: x\r\n" END,
     "404 open", 0},
    {"a field that is not known, often", GET "X: 1\r\nX: 2\r\nX: 3\r\n" END,
     "404 open", 0},
    {"a blank before the colon", GET "X : a\r\n" END, "400 close", 0},
    {"a tab before the colon", GET "X\t: a\r\n" END, "400 close", 0},
    {"a blank before Content-Length's colon",
     PUT "Content-Length : 1\r\n" END "1", "400 close", 0},
    {"no name", GET ": a\r\n" END, "400 close", 0},
    {"no colon", GET "X\r\n" END, "400 close", 0},
    {"a name with a blank", GET "X Y: a\r\n" END, "400 close", 0},
    {"a name with a slash", GET "X/Y: a\r\n" END, "400 close", 0},
    {"a name that is not ASCII", GET "X\xe9: a\r\n" END, "400 close", 0},
    {"a folded line", GET "X: a\r\n b\r\n" END, "400 close", 0},
    {"a folded line with a tab", GET "X: a\r\n\tb: c\r\n" END, "400 close", 0},
    {"a folded line that is empty", GET "X: a\r\n \r\n" END, "400 close", 0},
    {"a blank before the first field",
     "GET /KEYNO HTTP/1.1\r\n Host: h\r\n" END, "400 close", 0},
    {"a blank line before the first field",
     "GET /KEYNO HTTP/1.1\r\n \r\nHost: h\r\n" END, "400 close", 0},
    {"a bare CR in a value", GET "X: a\rb\r\n" END, "400 close", 0},
    {"a bare CR at the end of a value", GET "X: a\r\r\n" END, "400 close", 0},
    {"a bare CR in a name", GET "X\r: a\r\n" END, "400 close", 0},
    {"a bare LF behind a field", GET "X: a\n" END, "400 close", 0},
    {"a bare LF at the end", GET "\n", "400 close", 0},
    {"a bare LF behind the request line",
     "GET /KEYNO HTTP/1.1\nHost: h\r\n" END, "400 close", 0},
    {"a CR before the LF that ends a head", GET "\r\r\n", "400 close", 0},
    {"a NUL in a value", GET "X: a{nul}b\r\n" END, "400 close", 0},
    {"a NUL in a name", GET "X{nul}: a\r\n" END, "400 close", 0},
    {"a control character in a value", GET "X: a\x08\r\n" END, "400 close", 0},
    {"a DEL in a value", GET "X: a\x7f\r\n" END, "400 close", 0},
    {"a line of 15,000 bytes", GET "X: {15000*x}\r\n" END, "404 open", 0},
    {"a head of 16 KiB",
     "GET /KEYNO HTTP/1.1\r\nHost: h\r\nX: {16347*x}\r\n" END, "404 open", 0},
    {"and one byte", "GET /KEYNO HTTP/1.1\r\nHost: h\r\nX: {16348*x}\r\n" END,
     "431 close", 0},
    {"a name that does not end", GET "{17000*x}", "431 close", 0},
    {"a field that may be there once, twice",
     GET "If-None-Match: *\r\nIf-None-Match: *\r\n" END, "400 close", 0},
    {"Content-Type twice",
     PUT "Content-Type: a/b\r\nContent-Type: a/b\r\n" LENGTH("0") END,
     "400 close", 0},

    /* A body of a length (RFC 9112, 6.2 and 6.3; RFC 9110, 8.6). */
    {"a body", PUT LENGTH("5") END "ab\r\n\r" BACK, "201 200=ab\\r\\n\\r open",
     0},
    {"an empty one", PUT LENGTH("0") END BACK, "201 200= open", 0},
    {"none", PUT END BACK, "201 200= open", 0},
    {"zeros before the length",
     PUT LENGTH("0000000000000000000000002") END "12" BACK, "201 200=12 open",
     0},
    {"a body that looks like a request",
     PUT LENGTH("18") END "GET /a HTTP/1.1\r\n\r" BACK,
     "201 200=GET\\_/a\\_HTTP/1.1\\r\\n\\r open", 0},
    {"a body that is not all there", PUT LENGTH("1000") END "12", "eof", 0},
    {"a length twice", PUT LENGTH("1") LENGTH("1") END "1", "400 close", 0},
    {"two lengths", PUT LENGTH("1") LENGTH("2") END "12", "400 close", 0},
    {"a list of lengths", PUT LENGTH("1, 1") END "1", "400 close", 0},
    {"a list of two lengths", PUT LENGTH("1, 2") END "12", "400 close", 0},
    {"a length and a comma", PUT LENGTH("1,") END "1", "400 close", 0},
    {"no length behind the colon", PUT LENGTH("") END, "400 close", 0},
    {"a plus", PUT LENGTH("+1") END "1", "400 close", 0},
    {"a minus", PUT LENGTH("-1") END "1", "400 close", 0},
    {"minus zero", PUT LENGTH("-0") END, "400 close", 0},
    {"a hexadecimal length", PUT LENGTH("0x1") END "1", "400 close", 0},
    {"a length with letters", PUT LENGTH("1a") END "1", "400 close", 0},
    {"a length with a fraction", PUT LENGTH("1.0") END "1", "400 close", 0},
    {"a length with a blank", PUT LENGTH("1 1") END "1", "400 close", 0},
    {"a length in quotes", PUT LENGTH("\"1\"") END "1", "400 close", 0},
    {"a length with a separator", PUT LENGTH("1_0") END "1", "400 close", 0},
    {"a length above 2^32", PUT LENGTH("4294967297") END "1", "413 close", 0},
    {"a length of 2^64 - 1", PUT LENGTH("18446744073709551615") END "1",
     "413 close", 0},
    {"a length of 2^64 + 1", PUT LENGTH("18446744073709551617") END "1",
     "400 close", 0},
    {"a length of 30 digits", PUT LENGTH("{30*9}") END "1", "400 close", 0},
    {"a body to GET", GET LENGTH("3") END "abc" BACK, "404 404 open", 0},
    {"a body to DELETE", "DELETE /KEYNO" H1 LENGTH("3") END "abc" BACK,
     "404 404 open", 0},
    {"a body to HEAD", "HEAD /KEYNO" H1 LENGTH("3") END "abc" BACK,
     "h404 404 open", 0},
    {"a body to a path of the system",
     "POST /_health" H1 LENGTH("3") END "abc" BACK, "403 404 open", 0},
    {"a body to a method that nobody knows",
     "BREW /KEYNO" H1 LENGTH("3") END "abc" BACK, "501 404 open", 0},
    {"a long body that nobody wants",
     "POST /_health" H1 LENGTH("65537") END "abc", "403 close", 0},

    /* Transfer-Encoding (RFC 9112, 6.1 and 6.3). */
    {"chunks", CHUNKED ONE "2\r\n23\r\n" LAST BACK, "201 200=123 open", 0},
    {"chunked in any case",
     PUT "transfer-encoding: CHUNKED\r\n" END ONE LAST BACK, "201 200=1 open",
     0},
    {"chunked with blanks around",
     PUT "Transfer-Encoding: \tchunked \r\n" END ONE LAST BACK,
     "201 200=1 open", 0},
    {"chunked and a length",
     PUT LENGTH("11") "Transfer-Encoding: chunked\r\n" END ONE LAST,
     "400 close", 0},
    {"chunked, then a length",
     PUT "Transfer-Encoding: chunked\r\n" LENGTH("11") END ONE LAST,
     "400 close", 0},
    {"chunked and a bad length",
     PUT "Transfer-Encoding: chunked\r\n" LENGTH("x") END ONE LAST, "400 close",
     0},
    {"another encoding and a length",
     PUT "Transfer-Encoding: gzip\r\n" LENGTH("1") END "1", "400 close", 0},
    {"chunked twice in a list",
     PUT "Transfer-Encoding: chunked, chunked\r\n" END ONE LAST, "501 close",
     0},
    {"chunked twice",
     PUT "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" END ONE
         LAST,
     "400 close", 0},
    {"gzip, then chunked in a second field",
     PUT
     "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n" END ONE LAST,
     "400 close", 0},
    {"an encoding that is not known, then chunked",
     PUT "Transfer-Encoding: gzip, chunked\r\n" END ONE LAST, "501 close", 0},
    {"chunked is not the last",
     PUT "Transfer-Encoding: chunked, gzip\r\n" END ONE LAST, "400 close", 0},
    {"not chunked", PUT "Transfer-Encoding: gzip\r\n" END ONE LAST, "400 close",
     0},
    {"identity", PUT "Transfer-Encoding: identity\r\n" END ONE LAST,
     "400 close", 0},
    {"no encoding", PUT "Transfer-Encoding:\r\n" END ONE LAST, "400 close", 0},
    {"chunked with a parameter",
     PUT "Transfer-Encoding: chunked;a=b\r\n" END ONE LAST, "400 close", 0},
    {"chunked in quotes", PUT "Transfer-Encoding: \"chunked\"\r\n" END ONE LAST,
     "400 close", 0},
    {"a word that begins like chunked",
     PUT "Transfer-Encoding: chunkedx\r\n" END ONE LAST, "400 close", 0},
    {"a word that ends like chunked",
     PUT "Transfer-Encoding: xchunked\r\n" END ONE LAST, "400 close", 0},
    {"chunked and a control character",
     PUT "Transfer-Encoding: \x0b"
         "chunked\r\n" END ONE LAST,
     "400 close", 0},
    {"chunked in HTTP/1.0",
     "PUT /KEYNO HTTP/1.0\r\nTransfer-Encoding: chunked\r\n"
     "Connection: keep-alive\r\n" END ONE LAST,
     "400 close", 0},
    {"chunked to GET, which wants no body",
     GET "Transfer-Encoding: chunked\r\n" END ONE LAST, "404 close", 0},
    {"chunked with a blank before the colon",
     PUT "Transfer-Encoding : chunked\r\n" END ONE LAST, "400 close", 0},
    {"chunked in a folded line",
     PUT "Transfer-Encoding:\r\n chunked\r\n" END ONE LAST, "400 close", 0},

    /* Chunks (RFC 9112, 7.1). */
    {"no chunk but the last", CHUNKED LAST BACK, "201 200= open", 0},
    {"sizes in either case",
     CHUNKED "a\r\n0123456789\r\nA\r\n0123456789\r\n" LAST BACK,
     "201 200=01234567890123456789 open", 0},
    {"zeros before a size",
     CHUNKED "0000000000000000001\r\n1\r\n000\r\n" END BACK, "201 200=1 open",
     0},
    {"line ends in a chunk", CHUNKED "4\r\n\r\n0\r\r\n" LAST BACK,
     "201 200=\\r\\n0\\r open", 0},
    {"an extension", CHUNKED "1;a\r\n1\r\n" LAST BACK, "201 200=1 open", 0},
    {"extensions with values",
     CHUNKED "1;a=b;c=\"d;\\\"\\\\\"\r\n1\r\n0;e=f\r\n" END BACK,
     "201 200=1 open", 0},
    {"blanks before an extension", CHUNKED "1 \t;a\r\n1\r\n" LAST BACK,
     "201 200=1 open", 0},
    {"blanks around the value of one", CHUNKED "1; a = b\r\n1\r\n" LAST BACK,
     "201 200=1 open", 0},
    {"a line of 1,024 bytes with its CR",
     CHUNKED "1;{1021*x}\r\n1\r\n" LAST BACK, "201 200=1 open", 0},
    {"and one byte", CHUNKED "1;{1022*x}\r\n1\r\n" LAST, "400 close", 0},
    {"an extension that does not end", CHUNKED "1;{2000*x}", "400 close", 0},
    {"a bare LF in an extension", CHUNKED "1;a\nb\r\n1\r\n" LAST, "400 close",
     0},
    {"a bare CR in an extension", CHUNKED "1;a\rb\r\n1\r\n" LAST, "400 close",
     0},
    {"a NUL in an extension", CHUNKED "1;a{nul}\r\n1\r\n" LAST, "400 close", 0},
    {"blanks behind a size", CHUNKED "1 \r\n1\r\n" LAST, "400 close", 0},
    {"a blank before a size", CHUNKED " 1\r\n1\r\n" LAST, "400 close", 0},
    {"no size", CHUNKED "\r\n1\r\n" LAST, "400 close", 0},
    {"an extension and no size", CHUNKED ";a\r\n1\r\n" LAST, "400 close", 0},
    {"a size with 0x", CHUNKED "0x1\r\n1\r\n" LAST, "400 close", 0},
    {"a size with a plus", CHUNKED "+1\r\n1\r\n" LAST, "400 close", 0},
    {"a size with a minus", CHUNKED "-1\r\n1\r\n" LAST, "400 close", 0},
    {"a size with another letter", CHUNKED "1g\r\n1\r\n" LAST, "400 close", 0},
    {"a size with an underline", CHUNKED "1_0\r\n1\r\n" LAST, "400 close", 0},
    {"a size above the limit", CHUNKED "100001\r\n1", "413 close", 0},
    {"a size of 2^64 - 1", CHUNKED "ffffffffffffffff\r\n1\r\n" LAST,
     "413 close", 0},
    {"a size of 2^64 + 1", CHUNKED "10000000000000001\r\n1\r\n" LAST,
     "400 close", 0},
    {"sizes whose sum is above 2^64", CHUNKED "1\r\n1\r\nffffffffffffffff\r\n2",
     "413 close", 0},
    {"a bare LF behind a size", CHUNKED "1\n1\r\n" LAST, "400 close", 0},
    {"a bare CR behind a size", CHUNKED "1\r1\r\n" LAST, "400 close", 0},
    {"a bare LF behind a chunk", CHUNKED "1\r\n1\n" LAST, "400 close", 0},
    {"no line end behind a chunk", CHUNKED "1\r\n1" LAST, "400 close", 0},
    {"two bytes behind a chunk", CHUNKED "1\r\n1xx" LAST, "400 close", 0},
    {"a chunk that is longer than its size", CHUNKED "1\r\n12\r\n" LAST,
     "400 close", 0},
    {"a chunk that is shorter", CHUNKED "3\r\n12\r\n" LAST, "400 close", 0},
    {"a bare LF at the end", CHUNKED ONE "0\r\n\n", "400 close", 0},
    {"no last chunk", CHUNKED ONE "100\r\n", "eof", 0},

    /* Trailers (RFC 9112, 7.1.2; RFC 9110, 6.5). */
    {"trailers are dropped",
     CHUNKED ONE "0\r\nX: y\r\nContent-Type: a/b\r\n" END BACK,
     "201 200=1 open", "Content-Type: application/octet-stream"},
    {"trailers do not frame",
     CHUNKED ONE
     "0\r\nContent-Length: 5\r\nTransfer-Encoding: gzip\r\nHost: x\r\n" END
         BACK,
     "201 200=1 open", 0},
    {"a trailer without a colon", CHUNKED ONE "0\r\nX\r\n" END, "400 close", 0},
    {"a trailer without a name", CHUNKED ONE "0\r\n: x\r\n" END, "400 close",
     0},
    {"a blank before a trailer's colon", CHUNKED ONE "0\r\nX : y\r\n" END,
     "400 close", 0},
    {"a folded trailer", CHUNKED ONE "0\r\nX: y\r\n z\r\n" END, "400 close", 0},
    {"a bare LF behind a trailer", CHUNKED ONE "0\r\nX: y\n" END, "400 close",
     0},
    {"a bare CR in a trailer", CHUNKED ONE "0\r\nX: y\rz\r\n" END, "400 close",
     0},
    {"a NUL in a trailer", CHUNKED ONE "0\r\nX: {nul}\r\n" END, "400 close", 0},
    {"a request for a trailer", CHUNKED ONE "0\r\n" BACK, "400 close", 0},
    {"a trailer of 1,024 bytes with its CR",
     CHUNKED ONE "0\r\nX: {1020*x}\r\n" END BACK, "201 200=1 open", 0},
    {"and one byte", CHUNKED ONE "0\r\nX: {1021*x}\r\n" END, "400 close", 0},
    {"8 KiB of trailers",
     CHUNKED ONE
     "0\r\nA:{1000*x}\r\nB:{1000*x}\r\nC:{1000*x}\r\nD:{1000*x}\r\n"
     "E:{1000*x}\r\nF:{1000*x}\r\nG:{1000*x}\r\nH:{1000*x}\r\nI:{174*x}\r\n" END
         BACK,
     "201 200=1 open", 0},
    {"and one byte",
     CHUNKED ONE "0\r\nA:{1000*x}\r\nB:{1000*x}\r\nC:{1000*x}\r\nD:{1000*x}\r\n"
                 "E:{1000*x}\r\nF:{1000*x}\r\nG:{1000*x}\r\nH:{1000*x}\r\nI:{"
                 "175*x}\r\n" END,
     "400 close", 0},

    /* Expect (RFC 9110, 10.1.1). Whether there is a 100 depends on whether the
       body was there by then; it is left out here. */
    {"100-continue", PUT "Expect: 100-continue\r\n" LENGTH("1") END "1" BACK,
     "201 200=1 open", 0},
    {"in any case", PUT "expect: 100-CONTINUE\r\n" LENGTH("1") END "1" BACK,
     "201 200=1 open", 0},
    {"with chunks",
     PUT
     "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n" END ONE LAST BACK,
     "201 200=1 open", 0},
    {"with no body", PUT "Expect: 100-continue\r\n" END BACK, "201 200= open",
     0},
    {"a final answer instead",
     PUT "Expect: 100-continue\r\n" LENGTH("1048577") END, "413 close", 0},
    {"where no body is wanted, it may come or not",
     "POST /_health" H1 "Expect: 100-continue\r\n" LENGTH("1") END, "403 close",
     0},
    {"something else", PUT "Expect: 200-ok\r\n" LENGTH("1") END "1",
     "417 close", 0},
    {"100-continue and more",
     PUT "Expect: 100-continue, 200-ok\r\n" LENGTH("1") END "1", "417 close",
     0},
    {"nothing, which is an empty list", PUT "Expect:\r\n" LENGTH("1") END "1",
     "201 open", 0},
    {"HTTP/1.0 cannot expect",
     "PUT /KEYNO HTTP/1.0\r\nExpect: 100-continue\r\n" LENGTH("1") END "1",
     "201 close", 0},
    {"nor anything else",
     "PUT /KEYNO HTTP/1.0\r\nExpect: 200-ok\r\n" LENGTH("1") END "1",
     "201 close", 0},

    /* The connection (RFC 9112, 9; RFC 9110, 7.6.1). */
    {"close", GET "Connection: close\r\n" END BACK, "404 close", 0},
    {"close in any case", GET "connection: CLOSE\r\n" END BACK, "404 close", 0},
    {"close in a list", GET "Connection: x, close ,y\r\n" END BACK, "404 close",
     0},
    {"close in a second field",
     GET "Connection: keep-alive\r\nConnection: close\r\n" END BACK,
     "404 close", 0},
    {"close in a first field",
     GET "Connection: close\r\nConnection: keep-alive\r\n" END BACK,
     "404 close", 0},
    {"a word that is not close", GET "Connection: closed\r\n" END BACK,
     "404 404 open", 0},
    {"an empty list", GET "Connection: , ,\r\n" END BACK, "404 404 open", 0},
    {"keep-alive", GET "Connection: keep-alive\r\n" END BACK, "404 404 open",
     "!Connection"},
    {"close with a body", PUT "Connection: close\r\n" LENGTH("1") END "1" BACK,
     "201 close", 0},
    {"HTTP/1.0 and keep-alive",
     "GET /KEYNO HTTP/1.0\r\nConnection: Keep-Alive\r\n" END BACK,
     "404 404 open", "Connection: keep-alive"},
    {"HTTP/1.0, keep-alive and close",
     "GET /KEYNO HTTP/1.0\r\nConnection: keep-alive, close\r\n" END BACK,
     "404 close", 0},
    {"HTTP/1.0 with a body",
     "PUT /KEYNO HTTP/1.0\r\nConnection: keep-alive\r\n" LENGTH("1") END
     "1" BACK,
     "201 200=1 open", 0},
    {"an upgrade is not taken up",
     GET "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
         "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n" END BACK,
     "404 404 open", "!Upgrade"},
    {"a websocket, likewise",
     GET "Connection: Upgrade\r\nUpgrade: websocket\r\n" END, "404 open", 0},

    /* One behind the other (RFC 9112, 9.3.2). */
    {"five in one",
     BACK "HEAD /KEYNO" H1 END PUT LENGTH("1") END "1" BACK
                                                   "DELETE /KEYNO" H1 END,
     "404 h404 201 200=1 204 open", 0},
    {"bodies of both kinds",
     CHUNKED ONE LAST PUT LENGTH("1") END "2" BACK CHUNKED LAST BACK,
     "201 204 200=2 204 200= open", 0},
    {"good ones, then a bad one", PUT LENGTH("1") END "1" BACK "GET" END,
     "201 200=1 400 close", 0},
    {"nothing behind a bad one", "GET" END BACK BACK, "400 close", 0},
    {"half a request behind one", BACK "GET /KEYNO HT", "404 400 close", 0},

    /* What is asked for (RFC 9110, 9, 13 and 15); values, ranges and lists
       have tables of their own in servers.c. */
    {"PUT, then PUT", PUT LENGTH("1") END "1" PUT LENGTH("1") END "2" BACK,
     "201 204 200=2 open", 0},
    {"POST is PUT",
     "POST /KEYNO" H1 LENGTH("1") END "1POST /KEYNO" H1 LENGTH("1") END
     "2" BACK,
     "201 204 200=2 open", 0},
    {"HEAD has no body", PUT LENGTH("1") END "1HEAD /KEYNO" H1 END,
     "201 h200 open", "Content-Length: 1"},
    {"HEAD of a bad request", "HEAD /KEYNO" H1 "X : y\r\n" END, "h400 close",
     0},
    {"DELETE", PUT END "DELETE /KEYNO" H1 END "DELETE /KEYNO" H1 END BACK,
     "201 204 404 404 open", 0},
    {"PATCH", "PATCH /KEYNO" H1 LENGTH("1") END "1", "405 open",
     "Allow: GET, HEAD, PUT, POST, DELETE"},
    {"OPTIONS", "OPTIONS /KEYNO" H1 END, "405 open",
     "Allow: GET, HEAD, PUT, POST, DELETE"},
    {"TRACE gives nothing back", "TRACE /KEYNO" H1 "Cookie: a\r\n" END,
     "405 open", "!Cookie"},
    {"OPTIONS of a path of the system", "OPTIONS /_health" H1 END, "405 open",
     "Allow: GET, HEAD"},
    {"a type is kept",
     PUT "Content-Type: text/plain; charset=utf-8\r\n" LENGTH("1") END
     "1HEAD /KEYNO" H1 END,
     "201 h200 open", "Content-Type: text/plain; charset=utf-8"},
    {"none is none", PUT LENGTH("1") END "1HEAD /KEYNO" H1 END, "201 h200 open",
     "Content-Type: application/octet-stream"},
    {"curl -d's is none",
     PUT "Content-Type: application/x-www-form-urlencoded\r\n" LENGTH("1") END
     "1HEAD /KEYNO" H1 END,
     "201 h200 open", "Content-Type: application/octet-stream"},
    {"no browser is to guess", PUT LENGTH("1") END "1HEAD /KEYNO" H1 END,
     "201 h200 open", "X-Content-Type-Options: nosniff"},
    {"with a parameter as well",
     PUT "Content-Type: Application/x-www-form-urlencoded "
         ";charset=UTF-8\r\n" LENGTH("1") END "1HEAD /KEYNO" H1 END,
     "201 h200 open", "Content-Type: application/octet-stream"},
    {"a type of 127 bytes", PUT "Content-Type: x/{125*y}\r\n" LENGTH("0") END,
     "201 open", 0},
    {"a type of 128 bytes",
     PUT "Content-Type: x/{126*y}\r\n" LENGTH("1") END "1", "400 open", 0},
    {"an empty type is none",
     PUT "Content-Type:\r\n" LENGTH("1") END "1HEAD /KEYNO" H1 END,
     "201 h200 open", "Content-Type: application/octet-stream"},
    {"a type without a slash",
     PUT "Content-Type: text\r\n" LENGTH("1") END "1" BACK, "400 404 open", 0},
    {"a type without a subtype", PUT "Content-Type: text/;a=b\r\n" END,
     "400 open", 0},
    {"no type before the slash", PUT "Content-Type: /x\r\n" END, "400 open", 0},
    {"blanks around the slash", PUT "Content-Type: a / b\r\n" END, "400 open",
     0},
    {"two types", PUT "Content-Type: a/b, c/d\r\n" END, "400 open", 0},
    {"a type that is not ASCII", PUT "Content-Type: a/b\xe9\r\n" END,
     "400 open", 0},
    {"a type with a control character", PUT "Content-Type: a/b\x01\r\n" END,
     "400 close", 0},
    {"parameters of all kinds (RFC 9110, 5.6.6)",
     PUT "Content-Type: a/b;c=d ; ;\t e=\"f;\\\"\xe9 \";\r\n" LENGTH("1") END
     "1HEAD /KEYNO" H1 END,
     "201 h200 open", "Content-Type: a/b;c=d ; ;\t e=\"f;\\\"\xe9 \";"},
    {"a parameter without a value", PUT "Content-Type: a/b;c\r\n" END,
     "400 open", 0},
    {"with an empty one", PUT "Content-Type: a/b;c=\r\n" END, "400 open", 0},
    {"with one that has a blank", PUT "Content-Type: a/b;c=d e\r\n" END,
     "400 open", 0},
    {"with a blank before it", PUT "Content-Type: a/b;c= d\r\n" END, "400 open",
     0},
    {"quotes that do not end", PUT "Content-Type: a/b;c=\"d\\\"\r\n" END,
     "400 open", 0},
    {"the type of what has no value",
     "DELETE /KEYNO" H1 "Content-Type: x\r\n" END, "404 open", 0},
    {"a coded value is not taken for what it stands for (RFC 9110, 8.4)",
     PUT "Content-Encoding: gzip\r\n" LENGTH("2") END "\x1f\x8b" BACK,
     "415 404 open", "Accept-Encoding: identity"},
    {"a chunked one",
     PUT
     "Content-Encoding: br\r\nTransfer-Encoding: chunked\r\n" END ONE LAST BACK,
     "415 close", 0},
    {"one whose body waits for a 100",
     PUT "Content-Encoding: gzip\r\nExpect: 100-continue\r\n" LENGTH("2") END,
     "415 close", 0},
    {"one of several codings",
     "POST /KEYNO" H1 "Content-Encoding: identity, gzip\r\n" LENGTH("1") END
     "1" BACK,
     "415 404 open", 0},
    {"a coding that is none",
     PUT "Content-Encoding: Identity\r\n" LENGTH("1") END "1" BACK,
     "201 200=1 open", "!Content-Encoding"},
    {"an empty list of codings",
     PUT "Content-Encoding:\r\n" LENGTH("1") END "1" BACK, "201 200=1 open", 0},
    {"a coding where no value is stored",
     GET "Content-Encoding: gzip\r\n" END "DELETE /KEYNO" H1
         "Content-Encoding: gzip\r\n" END,
     "404 404 open", 0},
    {"dates are ignored where there is none (RFC 9110, 13.1.3 and 13.1.4)",
     PUT LENGTH("1") END
     "1" GET "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT\r\n" END PUT
     "If-Unmodified-Since: Thu, 01 Jan 1970 00:00:01 GMT\r\n" LENGTH("1") END
     "2" BACK,
     "201 200=1 204 200=2 open", 0},
    {"If-Range of a date: the whole (RFC 9110, 13.1.5)",
     PUT LENGTH("2") END "12" GET "Range: bytes=0-0\r\n"
                         "If-Range: Fri, 01 Jan 2100 00:00:00 GMT\r\n" END,
     "201 200=12 open", 0},
    {"If-Range without Range is ignored",
     PUT LENGTH("2") END "12" GET "If-Range: \"a\"\r\n" END, "201 200=12 open",
     0},
    {"a range is only of a GET (RFC 9110, 14.2)",
     PUT "Range: bytes=1-1\r\n" LENGTH("2") END "12HEAD /KEYNO" H1
                                                "Range: bytes=1-1\r\n" END BACK,
     "201 h200 200=12 open", "Content-Length: 2"},
    {"trailers in the answer are not needed",
     GET "Connection: TE\r\nTE: trailers, gzip;q=0.5\r\n" END, "404 open", 0},
    {"where the way ends (RFC 9110, 7.6.2)",
     "OPTIONS /KEYNO" H1 "Max-Forwards: 0\r\n" END, "405 open", 0},
    {"no coding is acceptable (RFC 9110, 12.5.3)",
     PUT LENGTH("1") END "1" GET "Accept-Encoding: gzip, *;q=0\r\n"
                         "Accept: text/html\r\n" END,
     "201 200=1 open", "!Content-Encoding"},
    {"a part is not taken for the whole (RFC 9110, 9.3.4)",
     PUT LENGTH("2") END "12" PUT "Content-Range: bytes 1-1/2\r\n" LENGTH("1")
         END "3" BACK,
     "201 400 200=12 open", 0},
    {"and is nothing to DELETE (RFC 9110, 14.4)",
     PUT END "DELETE /KEYNO" H1 "Content-Range: bytes 0-0/2\r\n" END BACK,
     "201 204 404 open", 0},
    {"If-None-Match: * of a new key",
     PUT "If-None-Match: *\r\n" LENGTH("1") END "1" BACK, "201 200=1 open", 0},
    {"If-None-Match: * of one that is there",
     PUT END PUT "If-None-Match: *\r\n" LENGTH("1") END "1" BACK,
     "201 412 200= open", 0},
    {"If-None-Match of a GET: no type of what is not sent (RFC 9110, 15.4.5)",
     PUT END GET "If-None-Match: *\r\n" END, "201 304 open", "!Content-Type"},
    {"If-Match: * of a new key", PUT "If-Match: *\r\n" LENGTH("1") END "1" BACK,
     "412 404 open", 0},
    {"If-Match of another etag",
     PUT END PUT "If-Match: \"0123456789abcdef\"\r\n" LENGTH("1") END "1",
     "201 412 open", 0},
    {"If-Match of no etag", PUT "If-Match: abc\r\n" LENGTH("1") END "1",
     "400 open", 0},
    {"a path that nobody knows", "GET /_what" H1 END, "404 open", 0},
    {"writing to a path of the system", "PUT /_what" H1 LENGTH("1") END "1",
     "403 open", 0},
    {"a key that begins with an underline",
     "PUT /%5FKEYNO" H1 LENGTH("1") END "1GET /%5fKEYNO" H1 END
                                        "GET /_KEYNO" H1 END,
     "201 200=1 404 open", 0},
};

#define SENTINEL "GET /end HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"

/* The server of all tests, and a connection that looks whether it has read
   what was sent before. */
static struct server *server;
static struct client probe;
static unsigned last_key;

/* Writes out a row's bytes: {9*x}, {nul}, and the sentinel. */
static size_t row_text(const struct row *r, char *to) {
    const char *p = r->text;
    size_t n = 0;

    while (*p != '\0') {
        int used = 0;
        unsigned times;
        char c;

        if (sscanf(p, "{%u*%c}%n", &times, &c, &used) == 2 && used > 0) {
            memset(to + n, c, times);
            n += times;
        } else if (strncmp(p, "{nul}", 5) == 0) {
            to[n++] = '\0';
            used = 5;
        } else {
            to[n++] = *p;
            used = 1;
        }
        p += used;
        check(n < ROW_MAX, "%s: too long", r->what);
    }
    memcpy(to + n, SENTINEL, sizeof SENTINEL - 1);
    return n + sizeof SENTINEL - 1;
}

/* One time that a row is sent. */
struct sending {
    const struct row *row;
    struct client c;
    char *text; /* with a key of its own */
    size_t n, sent;
    size_t cut;  /* the first piece, or all are of that size */
    char *got;   /* the answers */
    size_t room; /* in got, used */
    bool ended;  /* the server has closed */
};

/* Prepares to send a row; it is given a key. */
static void sending_begin(struct sending *s, const struct row *r, size_t cut) {
    static char text[ROW_MAX + sizeof SENTINEL];
    char key[6];

    memset(s, 0, sizeof *s);
    s->row = r;
    s->n = row_text(r, text);
    s->cut = cut;
    s->text = malloc(s->n);
    memcpy(s->text, text, s->n);
    snprintf(key, sizeof key, "%05u", ++last_key % 100000);
    for (size_t i = 0; i + 5 <= s->n; i++)
        if (memcmp(s->text + i, "KEYNO", 5) == 0)
            memcpy(s->text + i, key, 5);
    s->c = client_make(server->port);
    check(client_connect(&s->c), "cannot connect");
}

/* Sends the next n bytes, as far as there are. The server may have closed. */
static void sending_send(struct sending *s, size_t n) {
    if (n > s->n - s->sent)
        n = s->n - s->sent;
    if (n == 0 || s->ended)
        return;
    client_send(&s->c, s->text + s->sent, n);
    s->sent += n;
    if (s->sent == s->n)
        shutdown(s->c.fd, SHUT_WR);
}

/* Takes what was answered so far; with wait, until the server closes. */
static void sending_read(struct sending *s, bool wait) {
    long until = now_ms() + LIMIT_MS;

    while (!s->ended) {
        ssize_t n;

        s->got = realloc(s->got, s->room + 4096);
        n = recv(s->c.fd, s->got + s->room, 4095, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            if (!wait)
                return;
            check(client_poll(&s->c, POLLIN, until), "%s: no end",
                  s->row->what);
            continue;
        }
        s->ended = n <= 0;
        s->room += n > 0 ? (size_t)n : 0;
        check(s->room < ANSWERS_MAX, "%s: too much", s->row->what);
    }
    s->got[s->room] = '\0';
}

static void sending_end(struct sending *s) {
    client_end(&s->c);
    free(s->text);
    free(s->got);
}

/* Masks what may differ from one time to the next: dates and etags; and takes
   out each 100, which a server may leave out when the body is there. */
static void answers_mask(struct sending *s) {
    static const char more[] = "HTTP/1.1 100 Continue\r\n\r\n";
    char *at = s->got;

    while ((at = strstr(at, more)) != NULL)
        memmove(at, at + sizeof more - 1, strlen(at + sizeof more - 1) + 1);
    for (at = s->got; (at = strstr(at, "\r\n")) != NULL; at += 2)
        if (strncmp(at, "\r\nDate: ", 8) == 0)
            memset(at + 8, '#', strcspn(at + 8, "\r"));
        else if (strncmp(at, "\r\nETag: \"", 9) == 0)
            memset(at + 9, '#', strcspn(at + 9, "\""));
    s->room = strlen(s->got);
}

/* The rules of every answer, whatever was asked. */
static void answer_check(const struct row *r, const struct client *c,
                         bool head) {
    char text[300] = "";
    bool any = client_header(c, "Content-Length", text, sizeof text);

    check(any == (c->status != 204 && c->status != 304), "%s: length in\n%s",
          r->what, c->head);
    check(client_header(c, "Date", text, sizeof text) && strlen(text) == 29,
          "%s: no date in\n%s", r->what, c->head);
    check(client_header(c, "Allow", text, sizeof text) == (c->status == 405),
          "%s: Allow in\n%s", r->what, c->head);
    if (c->status < 400 || head || (c->status == 404 && c->body_len == 0))
        return;
    check(client_header(c, "Content-Type", text, sizeof text) &&
              strcmp(text, "text/plain; charset=utf-8") == 0 &&
              text_lines(c->body) == 1 && c->body[c->body_len - 1] == '\n',
          "%s: no line of text:\n%s\n%s", r->what, c->head, c->body);
}

/* Adds a value to what is told, with what cannot be seen escaped. */
static void told_value(char *told, size_t room, const struct client *c) {
    size_t n = strlen(told);

    told[n++] = '=';
    for (size_t i = 0; i < c->body_len && n + 3 < room; i++) {
        const char *odd = strchr("\r\n ", c->body[i]);

        if (odd != NULL)
            told[n++] = '\\';
        told[n++] = odd != NULL ? "rn_0"[strcspn("\r\n ", odd)] : c->body[i];
    }
    told[n] = '\0';
}

/* Tells what was answered, as the table has it, and checks each answer; *field
   is whether one had the field. */
static void answers_tell(struct sending *s, char *told, size_t room,
                         bool *field) {
    const struct row *r = s->row;
    const char *want = r->answers, *end = "eof";
    char text[300], name[64];
    bool not = r->field != NULL && r->field[0] == '!';

    *field = not || r->field == NULL;
    snprintf(name, sizeof name, "%.*s",
             (int)strcspn(r->field != NULL ? r->field + not : "", ":"),
             r->field != NULL ? r->field + not : "");
    told[0] = '\0';
    copy_to(&s->c.in, s->got, s->room);
    s->c.from = 0;
    s->c.len = s->room;
    while (s->c.from < s->c.len) {
        bool head = *want == 'h';
        int got = client_take(&s->c, head, true);

        check(got > 0, "%s: no answer:\n%s", r->what, s->c.in + s->c.from);
        check(strcmp(end, "close") != 0, "%s: more behind a close", r->what);
        if (strcmp(s->c.body, "the end") == 0) {
            end = "open";
            break;
        }
        answer_check(r, &s->c, head);
        if (r->field != NULL && client_header(&s->c, name, text, sizeof text))
            *field = !not &&(*field ||
                             strcmp(r->field + strlen(name) + 2, text) == 0);
        snprintf(told + strlen(told), room - strlen(told), "%s%s%d",
                 told[0] != '\0' ? " " : "", head ? "h" : "", s->c.status);
        if (client_header(&s->c, "Content-Type", text, sizeof text) &&
            strcmp(text, "application/octet-stream") == 0 && !head)
            told_value(told, room, &s->c);
        if (s->c.closes)
            end = "close";
        want += strcspn(want, " ");
        want += *want == ' ';
    }
    check(s->c.from == s->c.len, "%s: more behind the end", r->what);
    snprintf(told + strlen(told), room - strlen(told), "%s%s",
             told[0] != '\0' ? " " : "", end);
}

/* Makes sure that the server has read all that was sent so far: its one thread
   reads from all connections before it answers on any. fresh: it also has
   accepted all connections, which it does in their order. */
static void server_reads(bool fresh) {
    if (fresh)
        client_drop(&probe);
    for (int i = 0; i <= fresh; i++)
        check(client_text(&probe, "GET", "/_health", NULL) == 200, "probe: %d",
              probe.status);
}

/* Sends a row as a whole, and keeps the answers. Whether they are those of the
   table. */
static bool row_whole(const struct row *r, char **kept) {
    char told[1000];
    struct sending s;
    bool field, same;

    sending_begin(&s, r, 0);
    sending_send(&s, s.n);
    sending_read(&s, true);
    answers_mask(&s);
    answers_tell(&s, told, sizeof told, &field);
    same = strcmp(told, r->answers) == 0;
    if (!same)
        print_message("%s: %s, not %s\n", r->what, told, r->answers);
    if (!field)
        print_message("%s: %s in\n%s\n", r->what, r->field, s.got);
    *kept = strdup(s.got);
    sending_end(&s);
    return same && field;
}

/* Checks that a row was answered as it was before. */
static void answers_same(struct sending *s, const char *want) {
    sending_read(s, true);
    answers_mask(s);
    check(strcmp(s->got, want) == 0, "%s, in pieces of %zu:\n%s\nnot\n%s",
          s->row->what, s->cut, s->got, want);
    sending_end(s);
}

static char *answers[COUNT(rows)];

static void test_whole(void **state) {
    size_t wrong = 0;

    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++)
        wrong += !row_whole(&rows[i], &answers[i]);
    check(wrong == 0, "%zu of %zu rows", wrong, COUNT(rows));
}

/* Rows side by side, a byte each a turn; long ones in 500 pieces. Not too many
   at a time: a head has 10 s to arrive. */
static void test_bytes(void **state) {
    static struct sending all[SIDE_BY_SIDE];

    (void)state;
    for (size_t from = 0, n; from < COUNT(rows); from += n) {
        bool more = true;

        n = COUNT(rows) - from;
        n = n < SIDE_BY_SIDE ? n : SIDE_BY_SIDE;
        for (size_t i = 0; i < n; i++) {
            sending_begin(&all[i], &rows[from + i], 1);
            all[i].cut = all[i].n / 500 + 1;
        }
        server_reads(true);
        while (more) {
            more = false;
            for (size_t i = 0; i < n; i++) {
                sending_send(&all[i], all[i].cut);
                sending_read(&all[i], false);
                more = more || (!all[i].ended && all[i].sent < all[i].n);
            }
            server_reads(false);
        }
        for (size_t i = 0; i < n; i++)
            answers_same(&all[i], answers[from + i]);
    }
}

/* Each row once for each cut, side by side. */
static void test_cuts(void **state) {
    static struct sending all[CUTS_ALL];
    static char text[ROW_MAX + sizeof SENTINEL];

    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t most = row_text(&rows[i], text) - sizeof SENTINEL + 1, n = 0;
        size_t step = most < CUTS_ALL ? 1 : most / CUTS_SOME;

        for (size_t cut = 1; cut <= most; cut += step) {
            sending_begin(&all[n], &rows[i], cut);
            sending_send(&all[n++], cut);
        }
        server_reads(true);
        for (size_t k = 0; k < n; k++)
            sending_send(&all[k], all[k].n);
        for (size_t k = 0; k < n; k++)
            answers_same(&all[k], answers[i]);
    }
}

static int rows_begin(void **state) {
    (void)state;
    server = server_new("framing");
    server_args(server, "-port 0 -peerPort 0 -threads 1 -partitions 16 "
                        "-maxValue 1M -sync none");
    server_start(server);
    server_ready(server);
    probe = client_make(server->port);
    return client_text(&probe, "PUT", "/end", "the end") == 201 ? 0 : -1;
}

static int rows_end(void **state) {
    client_end(&probe);
    for (size_t i = 0; i < COUNT(rows); i++)
        free(answers[i]);
    if (server->pid > 0)
        server_stop(server);
    return servers_end(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_cuts),
    };

    run_begin(torture() ? 3600 : 900);
    return run_result(cmocka_run_group_tests(tests, rows_begin, rows_end));
}
