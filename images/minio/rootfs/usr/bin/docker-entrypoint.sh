#!/bin/sh
# As minio's own: arguments that are no program are minio's.
if [ "$1" != minio ] && ! command -v "${1:-minio}" >/dev/null; then
    set -- minio "$@"
fi
exec "$@"
