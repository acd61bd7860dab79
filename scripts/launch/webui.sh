#!/usr/bin/env bash
# Takes the webui's and the EAS guide's command lines as they stand:
#   ./webui.sh --listen --port 8000 --skip-version-check --no-hashing --no-download-sd-model \
#     --skip-prepare-environment --api --filebrowser --data-dir=/code/stable-diffusion-webui/data
# COMMANDLINE_ARGS, as webui-user.sh sets it, comes before the arguments.
set -euo pipefail
root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)"
python="${python_cmd:-python3}"

words='import os, shlex
for word in shlex.split(os.environ.get("COMMANDLINE_ARGS", "")): print(word, end="\0")'
mapfile -d '' -t from_environment < <("$python" -c "$words")
exec "$python" "$root/install.py" launch -- "${from_environment[@]}" "$@"
