#!/bin/sh
# Run a command with what Prefect needs from the files of the secrets.
set -eu
folder=${KCONN_SECRETS:-/run/secrets}
PREFECT_API_AUTH_STRING=$(cat "$folder/prefect_auth")
export PREFECT_API_AUTH_STRING
if [ -r "$folder/database_password" ]; then
  PREFECT_SERVER_API_AUTH_STRING=$PREFECT_API_AUTH_STRING
  PREFECT_SERVER_DATABASE_CONNECTION_URL="postgresql+asyncpg://prefect:$(cat "$folder/database_password")@${KCONN_DATABASE_HOST}:5432/prefect"
  export PREFECT_SERVER_API_AUTH_STRING PREFECT_SERVER_DATABASE_CONNECTION_URL
fi
exec "$@"
