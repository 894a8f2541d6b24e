#!/bin/sh
# Prints the first Python >= 3.11 that can make a virtual environment; otherwise says what to install.
# A name or path given as the first argument is the only candidate.
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'
can_make_venv='import venv, ensurepip'
too_bare=

for name in ${1:-python3 python3.11 python3.12 python3.13 python3.14 python}; do
    python=$(command -v "$name") || continue
    "$python" -c "$new_enough" 2>/dev/null || continue
    if "$python" -c "$can_make_venv" 2>/dev/null; then
        echo "$python"
        exit 0
    fi
    too_bare="$too_bare $python"
done

if [ -n "$too_bare" ]; then
    echo "Found$too_bare, without the modules venv and ensurepip. On Debian and Ubuntu: apt install python3-venv" >&2
else
    echo "No Python 3.11 or newer found${1:+ as $1}. Install one, or name it: make PYTHON=/path/to/python3.12 …" >&2
fi
exit 1
