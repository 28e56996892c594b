# Shared by the scripts of packaging/ and installer/: messages, needed programs,
# version, and the one time stamp that makes builds the same bytes. Sourced, not run.

set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=${OUT:-$TOP/dist}
# Given from where the caller is; what follows changes the directory.
for given in OUT TOOLS GPG_KEY SIGN_CERT SIGN_KEY; do
    [ -z "${!given:-}" ] || printf -v "$given" %s "$(realpath -m -- "${!given}")"
done

say() { printf '%s\n' "== $*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# need PROGRAM=DEBIAN-PACKAGE...: installs what is missing when it can, else says what to install.
need() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null 2>&1 || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing ${missing[*]}"
        # One after the other where several scripts need something: apt waits for nobody's "update".
        local install="DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=600 --no-install-recommends ${missing[*]}"
        flock /var/lib/apt sh -c "$install || { apt-get update -qq; $install; }" >&2 || die "could not install ${missing[*]}"
    else
        die "missing ${missing[*]}: as root, apt-get install ${missing[*]}"
    fi
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null 2>&1 || die "no ${pair%%=*} although ${pair#*=} is installed"
    done
}

# need_go: Go is not installed from the distribution, whose version may be too old.
need_go() {
    local said
    command -v go >/dev/null || die "Go is missing: install the version that go.mod names ($(sed -n 's/^go //p' "$TOP/go.mod"))"
    said=$(cd "$TOP" && go list -m 2>&1) || die "$(go version) does not read go.mod: $said"
}

# tools DIR builds the tools of packaging/tools into DIR (nfpm, go-winres, cyclonedx-gomod, manual, notices).
tools() {
    mkdir -p "$1"
    GOOS='' GOARCH='' go -C "$TOP/packaging/tools" build -trimpath -buildvcs=false -o "$1/" tool ./manual ./notices
}

# The time of the commit stands for every time inside the packages.
source_date_epoch() {
    if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
        echo "$SOURCE_DATE_EPOCH"
    else
        git -C "$TOP" log -1 --format=%ct 2>/dev/null || die "no git history here: set SOURCE_DATE_EPOCH"
    fi
}

# sbom BINARY NAME: a CycloneDX list of what the binary was made of, by the tool in PATH.
sbom() {
    cyclonedx-gomod bin -json -noserial -std -version "$VERSION" "$1" |
        sed "s/\"timestamp\": \"[^\"]*\"/\"timestamp\": \"$(date -u -d "@$SOURCE_DATE_EPOCH" +%FT%TZ)\"/" \
            >"$OUT/amqproxysvc-$VERSION.$2.cdx.json"
}

# gpg_home DIR: a private keyring in DIR holding the key of GPG_KEY (a file with an
# armoured secret key). Prints the key's fingerprint.
gpg_home() {
    mkdir -p -m 700 "$1"
    gpg --homedir "$1" --batch --quiet --import "$GPG_KEY" || die "GPG_KEY=$GPG_KEY cannot be read: an armoured secret key is needed"
    gpg --homedir "$1" --batch --with-colons --list-secret-keys | awk -F: '$1=="fpr"{print $10; exit}' | grep . ||
        die "GPG_KEY=$GPG_KEY holds no secret key"
}

# sign IN OUT: Authenticode with SIGN_CERT and SIGN_KEY (PEM), time-stamped when SIGN_URL is set.
sign() {
    need osslsigncode=osslsigncode
    rm -f "$2"
    osslsigncode sign -certs "$SIGN_CERT" -key "$SIGN_KEY" -h sha256 -n amqproxysvc \
        -i https://github.com/amqproxysvc/amqproxysvc ${SIGN_URL:+-ts "$SIGN_URL"} -in "$1" -out "$2" >/dev/null ||
        die "osslsigncode could not sign ${1##*/}: are SIGN_CERT and SIGN_KEY a pair of PEM files?"
}

# copy_tree DIR: the sources as they are here, committed or not.
copy_tree() {
    mkdir -p "$1"
    git -C "$TOP" ls-files -z --cached --others --exclude-standard |
        (cd "$TOP" && xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\\0" "$f"; done' sh) |
        tar -C "$TOP" --null --no-recursion -T - -cf - | tar -C "$1" -xmf -
}
