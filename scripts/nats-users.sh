#!/usr/bin/env bash
# Makes what a broker with users needs: scripts/nats-users.sh FOLDER TENANT...
#
# FOLDER gets a copy of docker/nats, a password for each service, for an operator and for each tenant's producers
# (FOLDER/<user>.password), and passwords.conf and tenants.conf, which tell the broker. Passwords that are there are kept, and
# so are nats-server.conf and the key of what it stores (store-key.conf), so it may run again with more tenants: name all of them, then
# `nats-server --signal reload` (`reload=PID` where several run). What the services need to know is printed, for a shell's `eval`.
set -euo pipefail
umask 077

usage="usage: scripts/nats-users.sh FOLDER TENANT..."
if [ $# -eq 0 ]; then
    echo "$usage" >&2
    exit 2
fi
folder=$1
shift
from=$(cd "$(dirname "$0")/../docker/nats" && pwd)
services="auth model-registry orchestrator gpu-worker"
for tenant in "$@"; do
    if ! [[ $tenant =~ ^[a-z0-9-]{1,40}$ ]]; then
        echo "the tenant \"$tenant\" must be 1 to 40 characters of a-z, 0-9 and -" >&2
        exit 2
    fi
done

# Makes the password of user $1, if it is not there. Not in a substitution: there a failure would be an empty password.
make_password() {
    local file=$folder/$1.password
    if [ ! -s "$file" ]; then
        openssl rand -hex 24 >"$file.new"
        mv "$file.new" "$file"
    fi
}

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
for user in $services operator "${@/#/producers-}"; do
    make_password "$user"
done
if [ ! -s "$folder/nats-server.conf" ]; then
    # First: the configuration takes it in.
    if [ ! -s "$folder/store-key.conf" ]; then
        openssl rand -hex 32 >"$folder/store-key.new"
        sed 's/.*/key: "&"/' "$folder/store-key.new" >"$folder/store-key.conf.new"
        mv "$folder/store-key.conf.new" "$folder/store-key.conf"
        rm "$folder/store-key.new"
    fi
    # Whole: nats-server would take it from where it is started, and begin an empty store elsewhere.
    store=$(printf %s "$folder/jetstream" | sed 's/[|&\\]/\\&/g')
    sed "s|store_dir: \"jetstream\"|store_dir: \"$store\"|" "$from/nats-server.conf" >"$folder/nats-server.conf.new"
    mv "$folder/nats-server.conf.new" "$folder/nats-server.conf"
fi
cp "$from/accounts.conf" "$folder/accounts.conf"
for user in $services operator; do
    # In quotes: of digits alone it would be a number.
    password=$(cat "$folder/$user.password")
    echo "$(echo "$user" | tr a-z- A-Z_)_PASSWORD: \"$password\""
done >"$folder/passwords.conf.new"
for tenant in "$@"; do
    password=$(cat "$folder/producers-$tenant.password")
    sed -e "s/acme/$tenant/g" -e "s/\"PASSWORD\"/\"$password\"/" "$from/tenant.conf"
done >"$folder/tenants.conf.new"
mv "$folder/passwords.conf.new" "$folder/passwords.conf"
mv "$folder/tenants.conf.new" "$folder/tenants.conf"

for service in $services; do
    prefix=INKSTONE_$(echo "$service" | tr a-z- A-Z_)__BROKER__
    echo "export ${prefix}USER=$service ${prefix}PASSWORD_FILE=$folder/$service.password"
done
