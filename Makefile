# estoraje: `make` builds it, `make start` starts three nodes of it on this
# machine, `make help` lists the rest. (GNU make.)

CFLAGS    ?= -O2 -g
PREFIX    ?= /usr/local
COMPILERS ?= gcc clang musl-gcc
number     = 1000
seconds    = 600

# What every compilation gets, whatever CFLAGS says. Warnings are errors only
# in `make check`: a newer compiler than ours may know more of them.
ALWAYS   = -std=c11 -D_POSIX_C_SOURCE=200809L -pthread $(WARNINGS)
WARNINGS = -pedantic -Wall -Wextra -Wshadow -Wconversion
COMPILE  = $(CC) $(ALWAYS) $(CPPFLAGS) $(CFLAGS) $(SANITIZE) $(LDFLAGS)
PROGRAM  = estoraje.c ring.c ring.h

build: estoraje ## builds ./estoraje (the default)

estoraje: $(PROGRAM)
	$(COMPILE) -o $@ estoraje.c ring.c $(LDLIBS)

# ---------------------------------------------------------------------------
# A cluster of three on this machine. Its data, logs and pids are in data/.
# ---------------------------------------------------------------------------

start: estoraje need-cluster ## starts three nodes, clients on 8000, 8001, 8002
run: estoraje need-cluster ## the same in the foreground, with logs; Ctrl-C ends it
restart: estoraje need-cluster ## stop, then start
status: need-curl ## what the cluster says of itself (also cluster-status)
stop: ## ends what start began
clear: ## stop, then removes the cluster's data

start run restart status stop clear:
	@test/cluster.sh $@

run-alone: estoraje ## runs one node in the foreground, without etcd
	@mkdir -p data
	@exec ./estoraje -port 8000 -peerPort 9000 -dataPath data/alone

add-samples: need-curl ## stores number=1000 sample keys in the cluster
	@test/cluster.sh add-samples "$(number)"

cluster-status: status

# ---------------------------------------------------------------------------
# Tests. Sanitizers watch the servers and the tests themselves.
# ---------------------------------------------------------------------------

SUITES = unit repair servers framing clients disk disk-tsan cluster cluster-tsan \
         join histories churn churn-tsan
# These need no clock, and run beside the others.
BESIDE = ring history grammar fuzz faults sim sim-asan sim-changes plants
SUITE_TARGETS = $(addprefix test-,$(SUITES) $(BESIDE) join-tsan)
TESTED = build/asan/estoraje build/tsan/estoraje \
         $(addprefix build/test/,ring_test history_test unit grammar fuzz repair \
         faults sim sim-asan servers framing disk cluster join histories churn \
         skew.so)

test: need-test ## every suite, with ASan, UBSan and TSan (also all-tests)
	@$(MAKE) --no-print-directory $(JOBS) $(TESTED)
	@MAKE="$(MAKE)" test/suites.sh "$(SUITES) $(if $(TORTURE),join-tsan)" \
	    "$(BESIDE)"

torture: export TORTURE = 1
torture: test ## the same suites in their long forms

acceptance: need-curl ## first steps on each node of URL="..." (also acceptance-cluster)
	@test/acceptance.sh

fuzz: need-fuzz build/test/fuzz ## seconds=600 of random input for each of its targets
	@$(FIXED) test/fuzz.sh build/test/fuzz $(seconds)

drills: estoraje need-drills ## does to real nodes what operators fear; names="..." does some
	@test/drills.sh $(names)

bench: estoraje need-bench ## how fast it is
	@bench/bench.sh

all-tests: test
acceptance-cluster: acceptance

# One suite: make test-unit. ESTORAJE is the server that it starts, SAMPLE=5
# asks for a fifth of the bulk work.
export SAMPLE
export ESTORAJE = $(CURDIR)/build/asan/estoraje
test-disk-tsan: SAMPLE = 5
test-cluster-tsan: SAMPLE = 2
test-disk-tsan test-cluster-tsan test-join-tsan test-churn-tsan: \
    ESTORAJE = $(CURDIR)/build/tsan/estoraje
export ASAN_OPTIONS  = detect_leaks=1:abort_on_error=0
export UBSAN_OPTIONS = print_stacktrace=1
export TSAN_OPTIONS  = halt_on_error=1:exitcode=66
# Some programs that tests start, haproxy for one, are not on a user's PATH.
export PATH := $(PATH):/usr/sbin:/sbin

test-ring: build/test/ring_test
test-history: build/test/history_test
test-unit: build/test/unit
test-grammar: build/test/grammar
test-fuzz: build/test/fuzz
	@$(FIXED) test/fuzz.sh $< $(if $(TORTURE),$(seconds),2)
test-repair: build/test/repair
test-faults: build/test/faults
# AddressSanitizer takes thrice the time: a tenth of the histories has it.
test-sim: build/test/sim
test-sim-asan: build/test/sim-asan
test-sim-asan: export HISTORIES = $(if $(TORTURE),100000,1000)
# All of these with changes of the ring.
test-sim-changes: build/test/sim
test-sim-changes: export CHANGES = 1
test-sim-changes: export HISTORIES = $(if $(TORTURE),1000000,2000)
test-servers: build/test/servers build/asan/estoraje
test-framing: build/test/framing build/asan/estoraje
test-disk: build/test/disk build/asan/estoraje
test-disk-tsan: build/test/disk build/tsan/estoraje
test-cluster: build/test/cluster build/asan/estoraje
test-cluster-tsan: build/test/cluster build/tsan/estoraje
test-join: build/test/join build/test/skew.so build/asan/estoraje
test-histories: build/test/histories build/test/skew.so build/asan/estoraje
test-join-tsan: build/test/join build/tsan/estoraje
test-churn: build/test/churn build/asan/estoraje
test-churn-tsan: build/test/churn build/tsan/estoraje
# The other tests of this suite take a minute more.
test-churn-tsan: export ONLY = $(if $(TORTURE),*,test_churn)

$(filter-out test-plants test-fuzz test-clients,$(SUITE_TARGETS)):
	@$(FIXED) $<

# The programs that people use, those of them that are installed.
test-clients: build/asan/estoraje
	@$(FIXED) test/clients.sh

# All planted errors are in one compilation; each runs until it is found.
test-plants: export COMPILE_FLAGS = $(ALWAYS) $(CPPFLAGS) -O1
test-plants:
	@CC="$(CC)" test/plants.sh

build/asan/% build/test/%: SANITIZE = -O1 -g -fno-omit-frame-pointer \
    -fsanitize=address,undefined -fno-sanitize-recover=all
build/tsan/%: SANITIZE = -O1 -g -fno-omit-frame-pointer -fsanitize=thread

build/asan/estoraje build/tsan/estoraje: $(PROGRAM)
	@mkdir -p $(@D)
	$(COMPILE) -o $@ estoraje.c ring.c $(LDLIBS)

# These tests include estoraje.c, so as to see what is static in it.
build/test/unit build/test/repair build/test/faults: build/test/%: \
    test/%.c test/harness.h $(PROGRAM) | need-test
	@mkdir -p $(@D)
	$(COMPILE) -o $@ $< ring.c -lcmocka $(LDLIBS)

build/test/sim build/test/sim-asan: test/sim.c test/history.h $(PROGRAM)
	@mkdir -p $(@D)
	$(COMPILE) -o $@ $< ring.c $(LDLIBS)

build/test/grammar: test/grammar.c $(PROGRAM)
	@mkdir -p $(@D)
	$(COMPILE) -o $@ $< ring.c $(LDLIBS)

# libFuzzer is clang's; without it the program only runs the corpus. (clang also
# objects to a null pointer plus 0, which C11 does not define and C23's
# successor does.)
build/test/fuzz: test/fuzz.c $(PROGRAM)
	@mkdir -p $(@D)
	clang $(ALWAYS) $(CPPFLAGS) $(CFLAGS) $(SANITIZE) -fsanitize=fuzzer \
	    -fno-sanitize=pointer-overflow $(LDFLAGS) -o $@ $< ring.c $(LDLIBS) \
	    2>/dev/null || $(COMPILE) -DNO_LIBFUZZER -o $@ $< ring.c $(LDLIBS)

build/test/sim: SANITIZE = -O2 -g -fsanitize=undefined -fno-sanitize-recover=all

build/test/ring_test: test/ring_test.c ring.c ring.h | need-test
	@mkdir -p $(@D)
	$(COMPILE) -o $@ test/ring_test.c ring.c -lcmocka $(LDLIBS)

build/test/history_test: test/history_test.c test/history.h | need-test
	@mkdir -p $(@D)
	$(COMPILE) -o $@ test/history_test.c -lcmocka $(LDLIBS)

build/test/servers build/test/framing build/test/disk build/test/cluster \
build/test/join build/test/histories build/test/churn: build/test/%: test/%.c \
    test/harness.h | need-test
	@mkdir -p $(@D)
	$(COMPILE) -o $@ $< -lcmocka $(LDLIBS)

build/test/histories build/test/churn: test/stories.h test/history.h

# Preloaded by servers that are to have a wrong clock.
build/test/skew.so: test/skew.c
	@mkdir -p $(@D)
	$(CC) $(ALWAYS) $(CPPFLAGS) $(CFLAGS) -fPIC -shared $(LDFLAGS) -o $@ $<

# As many compilers at once as there are processors, unless -j was given.
JOBS  = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell getconf _NPROCESSORS_ONLN))
# Sanitizers of some years ago fail at random where the kernel spreads
# addresses widely, as newer ones do: where it can be asked not to, it is.
FIXED = $(shell setarch "$$(uname -m)" -R true 2>/dev/null && \
    echo setarch "$$(uname -m)" -R)

# ---------------------------------------------------------------------------
# Checks of the source
# ---------------------------------------------------------------------------

check: need-check check-compilers check-tidy check-cppcheck check-format ## compilers, clang-tidy, cppcheck, clang-format

check-compilers: need-test
	@mkdir -p build/check
	set -e; for cc in $(COMPILERS); do \
	    $$cc $(ALWAYS) -Werror -O2 -o build/check/$$cc estoraje.c ring.c; done
	set -e; for file in test/*.c; do \
	    $(CC) $(ALWAYS) -Werror -O2 -c -o build/check/test.o $$file; done

check-tidy: need-check
	clang-tidy --quiet --warnings-as-errors='*' --checks='$(TIDY)' \
	    estoraje.c ring.c -- $(ALWAYS)

check-cppcheck: need-check
	cppcheck --enable=warning,performance,portability --std=c11 --quiet \
	    --inline-suppr --error-exitcode=1 estoraje.c ring.c

check-format: need-check
	clang-format --dry-run -Werror *.c *.h test/*.c test/*.h

# Left out: what C11 has no other way for, what speaks of habits, not bugs, and
# what says that strerror(), getenv() and exit() are not for threads: here they
# are used for errors that have constant texts, and before or after all threads.
EMPTY =
TIDY  = $(subst $(EMPTY) ,,-*,bugprone-*,cert-*,clang-analyzer-*,concurrency-*, \
    -bugprone-easily-swappable-parameters,-cert-err33-c,-cert-err34-c, \
    -concurrency-mt-unsafe,-bugprone-not-null-terminated-result, \
    -bugprone-implicit-widening-of-multiplication-result, \
    -bugprone-macro-parentheses,-clang-analyzer-optin.performance.Padding, \
    -clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling)

# ---------------------------------------------------------------------------
# What the targets need, installed from Debian's packages or named
# ---------------------------------------------------------------------------

ETCD_CURL = etcd:etcd-server curl:curl

need-curl: ; @test/need.sh curl:curl
need-cluster: ; @test/need.sh $(ETCD_CURL)
need-drills: ; @test/need.sh $(ETCD_CURL) etcdctl:etcd-client faketime:faketime \
    ip:iproute2 unshare:util-linux strace:strace
need-bench: ; @test/need.sh $(ETCD_CURL) wrk:wrk
# Without promtool what it would check is not checked, and the tests say so.
need-test:
	@test/need.sh $(ETCD_CURL) haproxy:haproxy strace:strace \
	    cmocka.h:libcmocka-dev
	@test/need.sh promtool:prometheus || :
need-fuzz: ; @CC=clang test/need.sh clang:clang -fsanitize=fuzzer:libclang-rt-dev
need-check: need-test
	@test/need.sh gcc:gcc clang:clang musl-gcc:musl-tools \
	    clang-tidy:clang-tidy clang-format:clang-format cppcheck:cppcheck

# ---------------------------------------------------------------------------

install: estoraje ## to PREFIX=/usr/local, below DESTDIR if given
	install -d "$(DESTDIR)$(PREFIX)/bin"
	install estoraje "$(DESTDIR)$(PREFIX)/bin/estoraje"

uninstall: ## removes what install put there
	rm -f "$(DESTDIR)$(PREFIX)/bin/estoraje"

clean: ## removes what was built
	rm -rf estoraje build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 22

.PHONY: build start run restart status stop clear run-alone add-samples \
    cluster-status test torture acceptance drills bench all-tests \
    acceptance-cluster \
    $(SUITE_TARGETS) check check-compilers \
    check-tidy check-cppcheck check-format need-curl need-cluster need-drills \
    need-bench need-test need-fuzz need-check fuzz install uninstall clean help
.DELETE_ON_ERROR:
