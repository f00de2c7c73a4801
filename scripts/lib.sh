# Shared by the scripts beside it: find a Python, keep a virtual environment up to date. Sourced, not run.
# Needs bash 3.2+ and coreutils or the BSD tools.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

say() { printf '%s\n' "== $*" >&2; }
die() { printf '%s\n' "$*" >&2; exit 1; }

# A name on PATH is not enough: version managers put names there that refuse to run, and some systems split
# venv off into a package of its own.
python_fits() { # COMMAND OLDEST NEWEST (3.x as two-digit numbers)
  "$1" -c "import sys, venv, ensurepip; sys.exit(not ((3, $2) <= sys.version_info[:2] <= (3, $3)))" >/dev/null 2>&1
}

find_python() { # prints a Python 3.11+; the tested ones (3.11 to 3.13) first
  local name
  if [ -n "${LATENTWIRE_PYTHON:-}" ]; then
    python_fits "$LATENTWIRE_PYTHON" 11 99 || die "LATENTWIRE_PYTHON=$LATENTWIRE_PYTHON is no Python 3.11+ with venv"
    echo "$LATENTWIRE_PYTHON"
    return
  fi
  for name in python3 python3.12 python3.13 python3.11 python; do
    if python_fits "$name" 11 13; then echo "$name"; return; fi
  done
  for name in python3 python3.14 python3.15; do
    if python_fits "$name" 11 99; then echo "$name"; return; fi
  done
  die "no Python 3.11 or newer with the venv module found (Debian, Ubuntu: apt install python3-venv);
set LATENTWIRE_PYTHON=/path/to/python3"
}

hash_of() { # sha256 of standard input
  if command -v sha256sum >/dev/null; then sha256sum | cut -d' ' -f1; else shasum -a 256 | cut -d' ' -f1; fi
}

# ensure_venv FOLDER EXTRAS: FOLDER holds this project (editable) with EXTRAS ("a,b" or "") when this returns.
# Costs nothing when nothing changed: a stamp in FOLDER records what it was made from.
ensure_venv() {
  local venv="$root/$1" extras="$2" stamp wanted python constraints target
  # LATENTWIRE_TORCH replaces the pinned torch, for another version or build: LATENTWIRE_TORCH="torch==2.12.1".
  # LATENTWIRE_UNPINNED=1 ignores all pins and takes the newest versions that pyproject.toml allows.
  wanted="$({ cat "$root/pyproject.toml" "$root/scripts/constraints.txt" "$root/scripts/lib.sh"
    printf '%s\n' "$root" "$extras" "${LATENTWIRE_TORCH:-}" "${LATENTWIRE_UNPINNED:-}" "${LATENTWIRE_PYTHON:-}"; } | hash_of)"
  stamp="$venv/latentwire-stamp"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$venv/bin/python" -c "" >/dev/null 2>&1; then
    return
  fi
  rm -f "$stamp"
  if ! python_fits "$venv/bin/python" 11 99 ||
    { [ -n "${LATENTWIRE_PYTHON:-}" ] && [ "$("$LATENTWIRE_PYTHON" -V)" != "$("$venv/bin/python" -V)" ]; }; then
    python="$(find_python)" || exit 1
    say "making $1 with $("$python" -V)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
  fi
  constraints="$venv/constraints.txt"
  if [ -n "${LATENTWIRE_UNPINNED:-}" ]; then : >"$constraints"
  elif [ -n "${LATENTWIRE_TORCH:-}" ]; then grep -v '^torch==' "$root/scripts/constraints.txt" >"$constraints"
  else cp "$root/scripts/constraints.txt" "$constraints"; fi
  case ",$extras," in
    *,test,* | *,train,*) if [ -n "${LATENTWIRE_TORCH:-}" ]; then echo "$LATENTWIRE_TORCH" >>"$constraints"; fi ;;
  esac
  target="$root"
  if [ -n "$extras" ]; then target="$root[$extras]"; fi
  say "installing latentwire${extras:+[$extras]} into $1"
  # The build tool goes in first, so that a later change of pyproject.toml can be installed without a network.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" "setuptools>=77"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" \
    --no-build-isolation --editable "$target"
  printf '%s\n' "$wanted" >"$stamp"
}
