#!/usr/bin/env bash
# jax 0.10.2, persistent compilation cache: what comes of an entry that was cut short, as by a command
# that was stopped while it wrote one (entries are written in place, not renamed into it).
#
# Seen: the next command warns "Error reading persistent compilation cache entry", compiles, and does
# not replace the entry, since a file of that name exists. So every later command warns and compiles
# again, until somebody removes the file.
# It hurts: a run that is stopped and resumed often compiles at every start, and prints a warning for
# each program, from the first stop at a bad moment on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2"
cd "$folder"
cat > step.py <<'PYTHON'
import jax
import jax.numpy as jnp

jax.config.update("jax_compilation_cache_dir", "cache")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(float(jax.jit(lambda x: jnp.tanh(x @ x.T).sum())(jnp.ones((8, 8)))))
PYTHON
export JAX_PLATFORMS=cpu
venv/bin/python -c 'import jax; print("jax", jax.__version__)'
venv/bin/python step.py
for entry in cache/*-cache; do truncate --size 300 "$entry"; done
for command in 1 2 3; do
  venv/bin/python step.py 2> warnings
  warned=$(grep --count "Error reading persistent compilation cache entry" warnings || true)
  kept=$(find cache -name "*-cache" -size -301c | wc -l)
  echo "command $command after it: $warned warnings, $kept entries still cut short"
  [ "$warned" -gt 0 ] && [ "$kept" -gt 0 ] || { echo "the behaviour has changed" >&2; exit 1; }
done
