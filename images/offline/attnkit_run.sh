#!/bin/sh
# attnkit-run TREE [OPTIONS] -- COMMAND …: runs a command in the root tree of an image, without a container engine.
#
# In a mount namespace of its own it binds /proc, /sys and /dev, the host's NVIDIA driver libraries and programs and what --bind
# names, then changes the root and starts the command with the image's environment. Root needs no user namespace; anyone else
# gets one in which they are root. The network is the host's. Nothing but util-linux, coreutils and this file is needed.
set -eu

usage() {
  cat >&2 << 'END'
usage: attnkit-run TREE [OPTIONS] -- COMMAND ...
  --bind FROM[:TO]      a file or folder of the host, at the same path or at TO; /tmp and /run/attnkit are otherwise in memory
  --env NAME[=VALUE]    a variable for the command; without a value: this shell's
  --driver DIR[:DIR]    where the host's NVIDIA driver libraries are (default: the loader's cache and the usual folders)
  --workdir DIR         folder of the tree to start in (default: /tmp)
END
  exit 2
}

fail() {
  echo "attnkit-run: $1" >&2
  exit 2
}

# What a command needs of the driver, as nvidia-container-cli mounts it for compute, utility and video.
LIBRARIES="cuda cudadebugger nvidia-ml nvidia-ptxjitcompiler nvidia-nvvm nvidia-gpucomp nvidia-cfg nvidia-allocator nvcuvid nvidia-encode"
PROGRAMS="nvidia-smi nvidia-debugdump nvidia-cuda-mps-control nvidia-cuda-mps-server"
PASSED="CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER NVIDIA_VISIBLE_DEVICES TERM"
INSIDE=/usr/local/nvidia

# The second time it runs in the namespace.
inside=no
if [ "${1:-}" = --inside ]; then inside=yes && shift; fi
[ $# -ge 1 ] || usage
case $1 in -h | --help | --) usage ;; esac
[ -d "$1/opt/attnkit" ] || fail "$1: no tree of an attnkit image (no opt/attnkit in it)"

if [ $inside = no ]; then
  command -v unshare > /dev/null || fail "there is no unshare here: install util-linux"
  set -- --mount --propagation private -- sh "$0" --inside "$@"
  [ "$(id -u)" = 0 ] || set -- --user --map-root-user "$@"
  exec unshare "$@"
fi

tree=$(cd "$1" && pwd -P)
shift
driver="" workdir=/tmp binds="" variables=""
while [ $# -gt 0 ]; do
  option=$1
  [ "$option" = -- ] || [ $# -ge 2 ] || usage
  shift
  case $option in
    --bind) binds="$binds$1
" ;;
    --env) case $1 in
      *=*) variables="$variables$1
" ;;
      *) variables="$variables$1=$(printenv "$1" || true)
" ;;
    esac ;;
    --driver) driver=$1 ;;
    --workdir) workdir=$1 ;;
    --) break ;;
    *) fail "unknown option $option" ;;
  esac
  shift
done
[ $# -gt 0 ] || usage

# bind FROM TO: mount a file or folder of the host at TO below the tree, which is made where it is missing.
bind() {
  if [ -d "$1" ]; then mkdir -p "$tree$2"; else mkdir -p "$tree$(dirname "$2")" && [ -e "$tree$2" ] || : > "$tree$2"; fi
  mount --rbind "$1" "$tree$2"
}

mount --bind "$tree" "$tree"
for folder in /proc /sys /dev; do bind "$folder" "$folder"; done
for folder in /tmp /run/attnkit "$INSIDE"; do
  mkdir -p "$tree$folder"
  case $folder:$binds in
    /tmp:*:/tmp"
"* | /run/attnkit:*:/run/attnkit"
"*) ;;
    *) mount -t tmpfs -o mode=1777 attnkit-run "$tree$folder" ;;
  esac
done
for file in /etc/hosts /etc/resolv.conf; do [ ! -f "$file" ] || bind "$file" "$file"; done

# Every name of a library, with and without version, leads to one file; each is bound under its own name.
[ -n "$driver" ] || driver=$({ ldconfig -p 2> /dev/null || true; } | sed -n 's|.*x86-64.*=> \(.*\)/libcuda\.so\.1$|\1|p' | head -n 1)
folders="$driver:/usr/local/nvidia/lib64:/usr/local/nvidia/lib:/usr/lib/x86_64-linux-gnu:/usr/lib64:/run/opengl-driver/lib:/usr/lib/wsl/lib"
mkdir -p "$tree$INSIDE/lib64" "$tree$INSIDE/bin"
found=0
for name in $LIBRARIES; do
  IFS=:
  for folder in $folders; do
    unset IFS
    for path in ${folder:+"$folder/lib$name.so"*}; do
      target=$INSIDE/lib64/${path##*/}
      if [ -f "$path" ] && [ ! -e "$tree$target" ]; then
        bind "$(readlink -f "$path")" "$target"
        found=$((found + 1))
      fi
    done
  done
  unset IFS
done
[ "$found" -gt 0 ] || echo "attnkit-run: no NVIDIA driver library on this host: the command sees no GPU" >&2
for name in $PROGRAMS; do
  path=$(command -v "$name" || true)
  [ -n "$path" ] || path=$INSIDE/bin/$name
  [ ! -f "$path" ] || bind "$(readlink -f "$path")" "$INSIDE/bin/$name"
done

printf '%s' "$binds" | while IFS= read -r pair; do
  from=${pair%%:*} to=${pair#*:}
  [ -e "$from" ] || fail "--bind $pair: there is no $from"
  bind "$(readlink -f "$from")" "$to"
done

# The command line grows to the front: the image's variables first, so that those asked for win.
while IFS= read -r line; do
  [ -z "$line" ] || set -- "$line" "$@"
done << END
$variables
END
for name in $PASSED; do
  value=$(printenv "$name" || true)
  [ -z "$value" ] || set -- "$name=$value" "$@"
done
while IFS= read -r line; do
  case $line in PATH=*) line=$line:$INSIDE/bin ;; esac
  [ -z "$line" ] || set -- "$line" "$@"
done < "$tree/etc/attnkit/environment"
exec chroot "$tree" /usr/bin/env -i -C "$workdir" "LD_LIBRARY_PATH=$INSIDE/lib64" "$@"
