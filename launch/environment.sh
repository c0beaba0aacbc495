# shellcheck shell=bash
# Makes .venv and brings it up to a lock. Sourced by local.sh and test.sh; bash 3.2 is enough.
#
# .venv/locks holds a copy of each lock that was installed to its end, under the checkout's path.
# So an interrupted installation starts over, and a changed lock or a moved checkout is noticed
# without asking an installer anything.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
log=$venv/install.log

say() { echo "medjax: $*" >&2; }

fail() {
  echo "error: $*" >&2
  exit 1
}

# Whether an NVIDIA GPU is here that JAX may use. WSL has no /dev/nvidia0.
has_gpu() {
  [[ ${JAX_PLATFORMS:-} != cpu ]] &&
    { [[ -e /dev/nvidia0 ]] || nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }
}

has_uv() { uv --version >/dev/null 2>&1; }

# Prints the path of the newest Python that medjax runs on. It is asked, not looked for on PATH: a
# version manager's shim may stand there and fail.
find_python() {
  local name answer major minor path seen="" bare=""
  for name in python3.13 python3.12 python3.11 python3; do
    answer=$("$name" -c 'import sys; print(*sys.version_info[:2], sys.executable)' 2>/dev/null) ||
      continue
    read -r major minor path <<<"$answer"
    if ((major * 100 + minor < 311)); then
      seen="; $name is $major.$minor"
    elif ! has_uv && ! "$path" -c 'import ensurepip, venv' 2>/dev/null; then
      bare="$path"
    else
      echo "$path"
      return
    fi
  done
  [[ -z $bare ]] || fail "$bare cannot make environments: install its venv package, or uv"
  fail "medjax needs Python 3.11 or newer${seen:-, and there is no python3}; install it, e.g. python3.11"
}

free_mb() { df -Pk "$root" | awk 'NR == 2 { print int($4 / 1024) }'; }

# What .venv weighs with a lock, in MB, measured with pip (uv takes less).
size_mb() {
  case $1 in
    cuda) echo 6200 ;;
    onnx) echo 1000 ;;
    *) echo 1500 ;;
  esac
}

stamp() {
  echo "# $root"
  cat "$root/launch/locks/$1.txt"
}

# Whether .venv holds this very lock.
current() {
  [[ -x $venv/bin/python && -f $venv/locks/$1.txt ]] && stamp "$1" | cmp -s - "$venv/locks/$1.txt"
}

# Whether another lock can be added to .venv: it holds one, and each that it holds is current.
sound() {
  local held
  for held in "$venv"/locks/*.txt; do
    current "$(basename "$held" .txt)" || return 1
  done
}

# Runs an installer's command into the log; where it fails, says why as far as the log tells.
logged() {
  "$@" >>"$log" 2>&1 </dev/null && return
  local why="the installer failed"
  if (($(free_mb) < 50)) || grep -qiE 'no space left|os error 28|disk quota' "$log"; then
    why="the disk is full"
  elif grep -qiE 'hash mismatch|not match the hashes' "$log"; then
    why="a package is not the one that the lock names"
  elif grep -qi 'certificate' "$log"; then
    why="a certificate was refused: name your network's own by SSL_CERT_FILE=FILE (uv) or PIP_CERT=FILE"
  elif grep -qiE 'dns error|resol(ve|ution)|connect|timed out|unreachable|retrying' "$log"; then
    why="no network: the package index does not answer"
  fi
  fail "$why. The last lines of $log:"$'\n'"$(tail -n 5 "$log" | sed -E 's/(.{200}).*/\1.../; s/^/  /')"
}

clear_venv() {
  [[ ! -e $venv || -d $venv/locks ]] ||
    fail "$venv was made by something else: move it away and start again"
  (($(free_mb) > $(size_mb "$1"))) ||
    fail "not enough disk: .venv takes $(size_mb "$1") MB, and $root has $(free_mb) MB left"
  rm -rf "$venv"
  mkdir -p "$venv/locks"
}

make_venv() {
  if has_uv; then
    UV_PYTHON_DOWNLOADS=never logged uv venv --allow-existing --python "$1" "$venv"
  else
    logged "$1" -m venv "$venv"
  fi
}

# The build backend is in the locks and comes first: it installs the project, as a path in
# site-packages, and promise, of which there is only source. Everything else comes built.
install() {
  local lock=$root/launch/locks/$1.txt pip=("$venv/bin/python" -m pip install --no-input)
  if has_uv; then pip=(uv pip install --python "$venv/bin/python"); fi
  pip+=(--no-build-isolation)
  awk '/^setuptools==/ { on = 1 } on { print } on && !/\\$/ { exit }' "$lock" >"$venv/backend.txt"
  logged "${pip[@]}" --only-binary :all: --require-hashes -r "$venv/backend.txt"
  logged "${pip[@]}" --only-binary :all: --no-binary promise --require-hashes -r "$lock"
  logged "${pip[@]}" --no-deps -e "$root"
}

build() {
  local python
  if ! sound; then
    python=$(find_python)
    clear_venv "$1"
    say "making .venv of $python, about $(size_mb "$1") MB; $log tells how far it is"
    make_venv "$python"
  fi
  say "installing launch/locks/$1.txt"
  install "$1"
  stamp "$1" >"$venv/locks/$1.txt"
  say ".venv is ready after $SECONDS s"
}

# Brings .venv up to a lock. Of several starts at once, one installs and the others wait for it.
ensure() {
  if current "$1"; then return; fi
  [[ -w $root ]] || fail "$root is read-only: .venv cannot be made in it"
  (
    if command -v flock >/dev/null && ! flock -n 9; then
      say "another start is making .venv; waiting for it"
      flock 9
    fi
    current "$1" || build "$1"
  ) 9>"$root/.venv.lock"
}
