#!/bin/bash
# Run by Vagrant as root inside the machine, after the project was copied in; also fit to be run by
# hand on any fresh Debian or Ubuntu: `vagrant/provision.sh /path/to/checkout`.
#
# Arguments: the checkout, then the addresses of all nodes (node1 first). May be run again.
set -euo pipefail

checkout=${1:?usage: provision.sh CHECKOUT [ADDRESS…]}
shift

# Nodes find each other by name.
if (($# > 1)); then
    touch /etc/hosts
    number=0
    for address in "$@"; do
        number=$((number + 1))
        sed -i "/[[:space:]]node$number\$/d" /etc/hosts
        echo "$address node$number" >>/etc/hosts
    done
fi

cd "$checkout"
script/setup
script/demo
echo "provision: done. Now: vagrant ssh, then sudo -i, then pyrun --help"
