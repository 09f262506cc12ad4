#!/usr/bin/env bash
# safetensors 0.8 writes files that only their owner may read, and puts them in the place of a link.
#
# Up to 0.5 `save_file` opened the file that it was given: its mode followed the umask, and a symbolic link was followed. 0.8
# writes a temporary file (mode 0600) and renames it. So a model saved on a shared disk cannot be read by a server that
# runs as another user, and weights that were linked to a larger disk are written beside the link's target, which keeps the
# old ones. transformers' `save_pretrained` writes through it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
for version in 0.5.3 0.8.0; do
  "$folder/venv/bin/pip" install --quiet "safetensors==$version" "numpy<3"
  rm -rf "$folder/disk" "$folder/here"
  mkdir "$folder/disk" "$folder/here"
  (cd "$folder/here" && umask 022 && "$folder/venv/bin/python" - <<'PY'
import os

import numpy
import safetensors
from safetensors.numpy import load_file, save_file

save_file({"a": numpy.zeros(3)}, "../disk/x.safetensors")
mode = oct(os.stat("../disk/x.safetensors").st_mode & 0o777)
os.symlink("../disk/x.safetensors", "x.safetensors")
save_file({"a": numpy.ones(3)}, "x.safetensors")
is_link, there = os.path.islink("x.safetensors"), load_file("../disk/x.safetensors")["a"][0]
print(f"safetensors {safetensors.__version__}: mode {mode} under umask 022; still a link: {is_link}; at its target: {there}")
wanted = ("0o644", True, 1.0) if safetensors.__version__ < "0.6" else ("0o600", False, 0.0)
if (mode, is_link, there) != wanted:
    raise SystemExit("the behaviour has changed")
PY
  )
done
