#!/bin/sh
# apt.sh [--upgrade] PACKAGE …: installs packages in a build step, through the mirror and the CA bundle that the step mounts as
# secrets, and leaves no package list behind. An interrupted build step is thrown away, so dpkg need not wait for the disk.
set -eu
export DEBIAN_FRONTEND=noninteractive DPKG_FORCE=unsafe-io
apt="apt-get -q -o Dpkg::Use-Pty=0"
if [ -s /run/build/apt.list ]; then apt="$apt -o Dir::Etc::sourcelist=/run/build/apt.list -o Dir::Etc::sourceparts=-"; fi
if [ -s /run/build/ca.pem ]; then apt="$apt -o Acquire::https::CAInfo=/run/build/ca.pem"; fi
$apt update
if [ "$1" = --upgrade ]; then
  shift
  $apt upgrade -y --no-install-recommends
fi
$apt install -y --no-install-recommends "$@"
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
