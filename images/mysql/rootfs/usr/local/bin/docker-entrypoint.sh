#!/bin/sh
# Makes the database at the first start and then runs the server: the official image's variables.
#
#   MYSQL_ROOT_PASSWORD, or MYSQL_ALLOW_EMPTY_PASSWORD, or MYSQL_RANDOM_ROOT_PASSWORD
#   MYSQL_ROOT_HOST     from where root may come (%: everywhere)
#   MYSQL_DATABASE, MYSQL_USER, MYSQL_PASSWORD
#   each also as NAME_FILE, the file that holds it
#   /docker-entrypoint-initdb.d/*.sh, *.sql, *.sql.gz run once, in order of name
set -eu

DATA=/var/lib/mysql
SOCKET=/run/mysqld/mysqld.sock
MARK=$DATA/.half-made   # there only while the first start is under way

note() {
    echo "$(date '+%F %T') [entrypoint] $*"
}

fail() {
    echo "$(date '+%F %T') [entrypoint] ERROR: $*" >&2
    exit 1
}

# NAME from NAME_FILE, where that is given.
from_file() {
    eval "file=\${$1_FILE:-} value=\${$1:-}"
    if [ -n "$file" ]; then
        [ -z "$value" ] || fail "both $1 and $1_FILE are set"
        value=$(cat "$file")
    fi
    eval "$1=\$value"
    unset "$1_FILE"
}

# A string as SQL has it, quotes and all.
quoted() {
    printf "'%s'" "$(printf %s "$1" | sed "s/\\\\/\\\\\\\\/g; s/'/''/g")"
}

# An identifier as SQL has it.
identifier() {
    printf '`%s`' "$(printf %s "$1" | sed 's/`/``/g')"
}

as_root() {
    # Until the password is set the client must not send one.
    mariadb --no-defaults --protocol=socket --socket="$SOCKET" -uroot \
        ${root_password_set:+--password="$MYSQL_ROOT_PASSWORD"} "$@"
}

start_for_setup() {
    mysqld ${run_as:+--user=$run_as} --skip-networking --socket="$SOCKET" &
    server=$!
    tries=0
    until as_root -e 'SELECT 1' >/dev/null 2>&1; do
        kill -0 "$server" 2>/dev/null || fail "the server ended while it was being set up"
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || fail "the server does not answer on $SOCKET"
        sleep 0.1
    done
}

set_accounts() {
    {
        echo "SET @@SESSION.SQL_LOG_BIN=0;"
        # The installation makes more doors than one, all without a password.
        echo "DELETE FROM mysql.global_priv"
        echo "  WHERE User = '' OR (User = 'root' AND Host <> 'localhost');"
        echo "DELETE FROM mysql.proxies_priv WHERE Host <> 'localhost';"
        echo "FLUSH PRIVILEGES;"
        password=$(quoted "$MYSQL_ROOT_PASSWORD")
        if [ "$MYSQL_ROOT_HOST" != localhost ]; then
            who="'root'@$(quoted "$MYSQL_ROOT_HOST")"
            echo "CREATE USER $who IDENTIFIED BY $password;"
            echo "GRANT ALL ON *.* TO $who WITH GRANT OPTION;"
        fi
        if [ -n "$MYSQL_DATABASE" ]; then
            echo "CREATE DATABASE IF NOT EXISTS $(identifier "$MYSQL_DATABASE");"
        fi
        if [ -n "$MYSQL_USER" ]; then
            who="$(quoted "$MYSQL_USER")@'%'"
            echo "CREATE USER $who IDENTIFIED BY $(quoted "$MYSQL_PASSWORD");"
            if [ -n "$MYSQL_DATABASE" ]; then
                echo "GRANT ALL ON $(identifier "$MYSQL_DATABASE").* TO $who;"
            fi
        fi
        # Last: after it this very connection could not be made again without the password.
        echo "ALTER USER 'root'@'localhost' IDENTIFIED BY $password;"
    } | as_root
    root_password_set=${MYSQL_ROOT_PASSWORD:+yes}
}

run_initdb() {
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
            *.sh)
                note "running $file"
                if [ -x "$file" ]; then "$file"; else . "$file"; fi
                ;;
            *.sql) note "running $file"; as_root ${MYSQL_DATABASE:+"$MYSQL_DATABASE"} <"$file" ;;
            *.sql.gz)
                note "running $file"
                gunzip -c "$file" | as_root ${MYSQL_DATABASE:+"$MYSQL_DATABASE"}
                ;;
        esac
    done
}

make_database() {
    if [ -z "$MYSQL_ROOT_PASSWORD$MYSQL_ALLOW_EMPTY_PASSWORD$MYSQL_RANDOM_ROOT_PASSWORD" ]; then
        fail "the database is not initialized and no password option is given: set one of" \
            "MYSQL_ROOT_PASSWORD, MYSQL_ALLOW_EMPTY_PASSWORD, MYSQL_RANDOM_ROOT_PASSWORD"
    fi
    if [ -n "$MYSQL_RANDOM_ROOT_PASSWORD" ]; then
        MYSQL_ROOT_PASSWORD=$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')
        note "GENERATED ROOT PASSWORD: $MYSQL_ROOT_PASSWORD"
    fi
    note "making the database in $DATA"
    if [ -e "$MARK" ]; then
        note "an earlier start was cut off half way: beginning again"
        rm -rf "$DATA/mysql" "$DATA"/ib* "$DATA"/aria_log* "$DATA"/undo*
    fi
    touch "$MARK"
    # --force: it need not find this host's name in DNS.
    output=$(mariadb-install-db ${run_as:+--user=$run_as} --datadir="$DATA" --skip-test-db --force \
        --auth-root-authentication-method=normal --skip-name-resolve 2>&1) || fail "$output"
    root_password_set=
    start_for_setup
    set_accounts
    run_initdb
    kill "$server"
    wait "$server" || fail "the server did not stop well after it was set up"
    rm "$MARK"
    note "the database is made"
}

# `--option` alone means the server.
case ${1:-} in -*) set -- mysqld "$@" ;; esac

if [ "${1:-}" = mysqld ] || [ "${1:-}" = mariadbd ]; then
    for name in MYSQL_ROOT_PASSWORD MYSQL_ALLOW_EMPTY_PASSWORD MYSQL_RANDOM_ROOT_PASSWORD \
        MYSQL_ROOT_HOST MYSQL_DATABASE MYSQL_USER MYSQL_PASSWORD; do
        from_file "$name"
    done
    MYSQL_ROOT_HOST=${MYSQL_ROOT_HOST:-%}
    [ "$MYSQL_USER" != root ] || fail "MYSQL_USER is not for root: use MYSQL_ROOT_PASSWORD"
    [ -z "$MYSQL_USER" ] || [ -n "$MYSQL_PASSWORD" ] || fail "MYSQL_USER needs MYSQL_PASSWORD"

    run_as=
    mkdir -p "$DATA" /run/mysqld
    if [ "$(id -u)" = 0 ]; then
        run_as=mysql
        chown mysql:mysql "$DATA" /run/mysqld
    fi
    if [ ! -d "$DATA/mysql" ] || [ -e "$MARK" ]; then
        make_database
    fi
    # The server needs no passwords in its environment, where /proc/1/environ shows them.
    unset MYSQL_ROOT_PASSWORD MYSQL_PASSWORD
    set -- "$@" ${run_as:+--user=$run_as}
fi
exec "$@"
