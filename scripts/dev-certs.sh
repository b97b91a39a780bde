#!/usr/bin/env bash
# Makes a certificate authority of one's own and a certificate for each service: scripts/dev-certs.sh FOLDER
#
# FOLDER/ca holds the authority, FOLDER/<service> what that service's tls.dir names, FOLDER/public a certificate of
# localhost for http.tls, FOLDER/nats one for the broker. What is there and good for another 30 days is kept, so it may run
# as often as one likes; RENEW=1 makes all certificates anew, by the same authority. DAYS (90) is how long they are good.
#
# For machines of developers and tests: the authority's key lies beside what it signs.
set -euo pipefail
umask 077

folder=${1:?"usage: scripts/dev-certs.sh FOLDER"}
days=${DAYS:-90}
keep_seconds=$((30 * 24 * 3600))
ca=$folder/ca

key() {
    openssl ecparam -name prime256v1 -genkey -noout -out "$1" 2>/dev/null
}

make_ca() {
    mkdir -p "$ca"
    key "$ca/key.pem.new"
    openssl req -x509 -new -key "$ca/key.pem.new" -sha256 -days 3650 -subj "/CN=Inkstone development CA" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" -out "$ca/ca.pem.new"
    mv "$ca/key.pem.new" "$ca/key.pem"
    mv "$ca/ca.pem.new" "$ca/ca.pem"
}

# make NAME SUBJECT-ALTERNATIVE-NAMES
make() {
    local to=$folder/$1 names=$2
    mkdir -p "$to"
    if [ -z "${RENEW:-}" ] && [ -s "$to/cert.pem" ] && [ -s "$to/key.pem" ] && cmp -s "$ca/ca.pem" "$to/ca.pem" &&
        openssl x509 -in "$to/cert.pem" -noout -checkend "$keep_seconds" >/dev/null; then
        return
    fi
    key "$to/key.pem.new"
    openssl req -new -key "$to/key.pem.new" -subj "/CN=$1" -out "$to/request.pem"
    printf '%s\n' "subjectAltName=$names" "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" \
        "extendedKeyUsage=serverAuth,clientAuth" >"$to/extensions"
    openssl x509 -req -in "$to/request.pem" -CA "$ca/ca.pem" -CAkey "$ca/key.pem" -sha256 -days "$days" \
        -set_serial "0x$(openssl rand -hex 16)" -extfile "$to/extensions" -out "$to/cert.pem.new" 2>/dev/null
    rm "$to/request.pem" "$to/extensions"
    cp "$ca/ca.pem" "$to/ca.pem.new"
    for file in ca cert key; do
        mv "$to/$file.pem.new" "$to/$file.pem"
    done
}

if [ ! -s "$ca/ca.pem" ] || [ ! -s "$ca/key.pem" ]; then
    make_ca
fi
services="gateway auth orchestrator model-registry gpu-worker"
for name in $services operator; do
    make "$name" "DNS:$name.inkstone"
done
make public "DNS:localhost,IP:127.0.0.1,IP:::1"
make nats "DNS:localhost,IP:127.0.0.1,IP:::1"

folder=$(cd "$folder" && pwd)
for name in $services; do
    echo "export INKSTONE_$(echo "$name" | tr a-z- A-Z_)__TLS__DIR=$folder/$name"
done
echo "export INKSTONE_TLS_DIR=$folder/operator   # for inkstone keys and inkstone models"
echo "# The public port: INKSTONE_GATEWAY__HTTP__TLS__CERT=$folder/public/cert.pem INKSTONE_GATEWAY__HTTP__TLS__KEY=$folder/public/key.pem"
echo "# The broker: tls { cert_file: \"$folder/nats/cert.pem\", key_file: \"$folder/nats/key.pem\", ca_file: \"$folder/nats/ca.pem\", verify: true }"
echo "# and INKSTONE_<SERVICE>__BROKER__TLS_DIR as <SERVICE>__TLS__DIR above."
