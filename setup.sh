#!/bin/sh
# Installs Flow for this user, or brings it up to date: see `usage`.
set -eu

repository=git+https://github.com/foundrytechnologies/flow-sdk
package=flow-compute
own_uv="${XDG_DATA_HOME:-$HOME/.local/share}/flow/uv" # where pip puts one

usage="Installs Flow for this user, or brings it up to date:  curl -LsSf ADDRESS/setup.sh | sh
It puts \`flow\` where uv puts programs (~/.local/bin), and changes nothing else. These variables choose:
  FLOW_SOURCE  what to install: a folder, a wheel, or git+https://…; by default this repository
  FLOW_UV      the uv to install it with; by default the one on PATH, or one that is fetched"

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $1"
  shift
  for hint; do say "hint: $hint"; done
  exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# The uv that is here; nothing where there is none.
find_uv() {
  for one in "${FLOW_UV:-}" "$(command -v uv || :)" "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv" "$own_uv/bin/uv"; do
    if [ -n "$one" ] && "$one" --version >/dev/null 2>&1; then
      printf '%s\n' "$one"
      return
    fi
    [ -z "$one" ] || [ "$one" != "${FLOW_UV:-}" ] || die "FLOW_UV \`$FLOW_UV\` is no uv that runs"
  done
}

# uv's own installer, which needs no Python.
fetch_uv() {
  address=https://astral.sh/uv/install.sh
  if has curl; then
    script=$(curl -LsSf --connect-timeout 10 "$address" 2>/dev/null) || return 1
  elif has wget; then
    script=$(wget -qO- --timeout 10 --tries 1 "$address" 2>/dev/null) || return 1
  else
    return 1
  fi
  printf '%s\n' "$script" | UV_NO_MODIFY_PATH=1 sh >/dev/null 2>&1
}

# From the package index that pip is set up for, into a folder of its own.
pip_uv() {
  for python in python3 python; do
    if has "$python"; then
      if "$python" -m venv "$own_uv" >/dev/null 2>&1; then
        "$own_uv/bin/python" -m pip install --quiet --upgrade uv >&2 </dev/null && return
      fi
      "$python" -m pip install --quiet --upgrade --target "$own_uv" uv >&2 </dev/null && return
    fi
  done
  return 1
}

# The folder above this script, where it is one of Flow's own and not piped into the shell.
checkout() {
  case $0 in *setup.sh) ;; *) return 0 ;; esac
  folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || return 0
  if grep -q "^name = \"$package\"" "$folder/pyproject.toml" 2>/dev/null; then printf '%s\n' "$folder"; fi
}

main() {
  case ${1:-} in
    '') ;;
    -h | --help) printf '%s\n' "$usage" && exit ;;
    *) die "\`$1\` is not understood: there are no options but --help" ;;
  esac
  case $(uname -s) in
    Linux | Darwin) ;;
    *) die "Flow runs on Linux and macOS" "on Windows, use it in WSL" ;;
  esac
  source=${FLOW_SOURCE:-$(checkout)}
  source=${source:-$repository}
  case $source in git+*) has git || die "git is not here, which \`$source\` is fetched with" "install git" ;; esac

  uv=$(find_uv)
  if [ -z "$uv" ]; then
    say "fetching uv, which installs Flow and the Python that it needs"
    fetch_uv || pip_uv || die "uv could not be fetched: neither from astral.sh nor by pip" \
      "is there a network, or a proxy to be set (HTTPS_PROXY)?" \
      "install uv (https://docs.astral.sh/uv) and run this again, or name it: FLOW_UV=/path/to/uv"
    uv=$(find_uv)
    [ -n "$uv" ] || die "the uv that was fetched does not run here" "install it: https://docs.astral.sh/uv"
  fi

  say "installing Flow from $source"
  # --reinstall-package: a folder or a branch may hold something newer under the same version
  "$uv" tool install --quiet --reinstall-package "$package" "$source" </dev/null ||
    die "uv could not install \`$source\`: see above" \
      "another program called \`flow\`? \`$uv tool list\` shows those of uv, and \`$uv tool uninstall NAME\` removes one"
  bin=$("$uv" tool dir --bin)
  version=$("$bin/flow" --version 2>/dev/null) || version=
  case $version in
    "flow "[0-9]*) say "$version is installed: $bin/flow" ;;
    *) die "what \`$source\` installed as \`$package\` is another program" "name Flow's own place: FLOW_SOURCE=…" ;;
  esac
  found=$(command -v flow || :)
  if [ "$found" = "$bin/flow" ]; then
    say "next: flow init"
  else
    [ -z "$found" ] || say "note: \`flow\` is $found now, which comes first on PATH"
    say "next: put it on PATH, here by the first line, in new shells by the second; then \`flow init\`"
    # shellcheck disable=SC2016  # PATH is for the shell that this is typed into
    printf '  export PATH="%s:$PATH"\n  %s tool update-shell\n' "$bin" "$uv" >&2
  fi
}

main "$@" # at the end, so that half a download does nothing
