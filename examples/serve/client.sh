#!/usr/bin/env bash
# Asks a server: client.sh IMAGE TASK [ADDRESS]. VPT_KEY holds the key, if the server wants one. Needs curl.
set -euo pipefail
image=$1 task=$2 server=${3:-http://127.0.0.1:8484}
ask() { curl --silent --show-error --fail-with-body ${VPT_KEY:+-H "Authorization: Bearer $VPT_KEY"} "$@"; echo; }

echo "The tasks there are:"
ask "$server/v1/models"

echo "What $task says of $image:"
ask --data-binary "@$image" "$server/v1/tasks/$task/predict?top_k=3"

echo "The same image twice, as a form:"
ask --form "image=@$image" --form "image=@$image" "$server/v1/tasks/$task/predict?top_k=1"

echo "Where it looks, as attention.png:"
ask --data-binary "@$image" --output attention.png "$server/v1/tasks/$task/attention"
