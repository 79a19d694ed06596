#!/bin/sh
# Runs what is in /docker-entrypoint.d, as the official image does, and then the command.
set -e

if [ "$1" = nginx ]; then
    # A kernel without IPv6 refuses the second `listen`, so it is added only where it works.
    if [ -f /proc/net/if_inet6 ] && [ -w /etc/nginx/conf.d/default.conf ] &&
        ! grep -q 'listen .*\[::\]' /etc/nginx/conf.d/default.conf; then
        sed -i 's/^    listen  *80;$/&\n    listen  [::]:80;/' /etc/nginx/conf.d/default.conf
    fi
    for script in /docker-entrypoint.d/*.sh; do
        if [ -x "$script" ]; then
            "$script"
        fi
    done
fi
exec "$@"
