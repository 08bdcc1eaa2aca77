#!/bin/sh
# need.sh WHAT:PACKAGE ... - sees to it that the machine has what a target
# needs.
#
# WHAT is a command, a header (NAME.h, which the compiler is asked for), or an
# option with which the compiler must be able to make a program (-f...).
# What is missing is installed from the Debian package named after it, where
# there is apt-get and the user may; otherwise it is named, and the exit code
# is 1. Nothing is printed when nothing is missing.
set -u
PATH=$PATH:/usr/sbin:/sbin

has() {
    case $1 in
    -f*) echo "int LLVMFuzzerTestOneInput(void) { return 0; }" |
        ${CC:-cc} "$1" -xc - -o /dev/null >/dev/null 2>&1 ;;
    *.h) echo "#include <$1>" | ${CC:-cc} -E -xc - >/dev/null 2>&1 ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

# Sets things and packages to what is missing.
look() {
    things='' packages=''
    for want in "$@"; do
        has "${want%%:*}" && continue
        things="$things ${want%%:*}"
        packages="$packages ${want#*:}"
    done
    [ -z "$packages" ]
}

give_up() {
    echo "missing:$things; as root: apt-get install$packages" >&2
    exit 1
}

apt() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get \
        -o DPkg::Lock::Timeout=120 "$@" </dev/null >>"$log" 2>&1
}

# A Debian package that brings a service also starts it, now and at each boot.
# Nobody asked for that here, and it was not there before: end it, and say so.
no_service() {
    for service in $(dpkg -L "$1" |
        sed -n -e 's,^/etc/init.d/\(.\),\1,p' \
            -e 's,.*/systemd/system/\([^/@]*\)\.service$,\1,p' | sort -u); do
        if [ -d /run/systemd/system ]; then
            $as_root systemctl --quiet disable --now "$service"
        else
            $as_root service "$service" stop
            $as_root update-rc.d "$service" disable
        fi >>"$log" 2>&1 </dev/null
        echo "the service $service, which came with $1, is stopped and disabled"
    done
}

look "$@" && exit 0

as_root=
command -v apt-get >/dev/null || give_up
if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || give_up
    as_root=sudo
fi

log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
echo "installing$packages"

# The package lists may be old, or not there at all: then get them and try
# once more. (An update may fail for sources that do not matter here.)
install="install -y --no-install-recommends $packages"
if ! apt $install; then
    : >"$log"
    apt update
    apt $install || { cat "$log" >&2; give_up; }
fi
for package in $packages; do
    no_service "$package"
done
look "$@" || give_up
