# Sourced by tools/quickstart and tools/test: a virtual environment of the repository's own.
# usage: use_venv EXTRAS [PACKAGE ...]   leaves $python set, with the package installed in place; EXTRAS may be "".
# The versions are those of constraints.txt, or with AIBIT_NEWEST set the newest that pyproject.toml allows.

use_venv() {
    local extras=$1 folder=${AIBIT_VENV:-.venv} stamp wanted base
    shift
    python=$folder/bin/python
    wanted=$(cat constraints.txt pyproject.toml aibit_format/native/*.[ch] | cksum)" $extras $*"
    stamp=$folder/installed-${extras:-core}
    if [ -z "${AIBIT_NEWEST:-}" ] && [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    base=$(find_python) || { echo "Python 3.11 or later is needed, and none was found" >&2; exit 1; }
    echo "installing into $folder with $base (once)" >&2
    "$base" -m venv "$folder"
    # torch first, and always by its exact version: asked for loosely, a build with gigabytes of CUDA may come instead.
    grep "${AIBIT_NEWEST:+^torch==}" constraints.txt >"$folder/constraints.txt"
    if [ -n "$extras" ]; then
        pip_install "$(grep '^torch==' constraints.txt)"
    fi
    pip_install -e ".${extras:+[$extras]}"
    if [ $# -gt 0 ]; then
        pip_install --no-deps "$@"
    fi
    echo "$wanted" >"$stamp"
}

pip_install() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -m pip install --quiet ${AIBIT_NEWEST:+--upgrade --upgrade-strategy eager} \
        -c "${python%/bin/python}/constraints.txt" "$@" 2>&1 |
        grep -v '^WARNING: Location' >&2 || true
    [ "${PIPESTATUS[0]}" -eq 0 ] || { echo "pip install $* failed" >&2; exit 1; }
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.11 python3.12 python3.13 python3.14; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
        then
            echo "$candidate"
            return
        fi
    done
    return 1
}
