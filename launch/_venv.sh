# Sourced by the scripts beside it, from the root of the repository.

require_python() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
  echo "vgjax needs Python 3.11 or later, but $1 is $("$1" --version 2>&1 || true): $2." >&2
  exit 1
}

# ensure_venv REQUIREMENTS: .venv holds the package (editable) and what the file lists, at the versions of constraints.txt.
# Installs only when .venv has not yet seen these very requirements; the development set includes the run-time set.
ensure_venv() {
  local requirements="$1" python=.venv/bin/python host_python="${PYTHON:-python3}" wanted
  wanted="$(printf '%s\n' "$PWD" && cat requirements.txt requirements-dev.txt constraints.txt)"
  if [[ -x $python ]]; then
    local seen
    for seen in ".venv/installed-$requirements" .venv/installed-requirements-dev.txt; do
      if [[ -f $seen && "$(<"$seen")" == "$wanted" ]]; then return; fi
    done
  fi

  if [[ ! -x $python ]] || ! "$python" -m pip --version >/dev/null 2>&1; then
    require_python "$host_python" "install a newer one, or name it with PYTHON=/path/to/python3"
    "$host_python" -m venv .venv
  fi
  require_python "$python" "remove .venv and start again"
  echo "Installing $requirements and vgjax into .venv; this happens once and takes a few minutes." >&2
  "$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -r "$requirements" -e . >&2
  printf '%s\n' "$wanted" >".venv/installed-$requirements"
}
