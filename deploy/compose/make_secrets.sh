#!/bin/sh
# Make the secrets of compose.yaml, once. Existing ones are kept.
set -eu
umask 077
folder=$(dirname "$0")/secrets
mkdir -p "$folder"
random() { openssl rand -hex 24; }
[ -e "$folder/database_password" ] || random > "$folder/database_password"
[ -e "$folder/prefect_auth" ] || printf 'kconn:%s' "$(random)" > "$folder/prefect_auth"
if [ ! -e "$folder/proxy_users" ]; then
  password=$(random)
  printf 'lab:%s\n' "$(openssl passwd -6 "$password")" > "$folder/proxy_users"
  printf 'user of the pages: lab, password: %s (shown once)\n' "$password"
fi
if [ ! -e "$folder/proxy.pem" ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
    -keyout "$folder/proxy-key.pem" -out "$folder/proxy.pem" 2> /dev/null
fi
# Containers read them under other users: the folder, mode 0700, is what keeps others out.
chmod 0644 "$folder"/*
