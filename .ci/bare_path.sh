#!/bin/sh
# bare_path.sh DIRECTORY: fill a directory with links to all that `make test` and `make demo` may take from PATH: python3, make,
# git, sh and the programs of GNU coreutils. `PATH=DIRECTORY make test` then sees what a machine with nothing else sees.
set -eu
directory=$1
mkdir -p "$directory"

# The list of the package itself; `install` and `nice` are among them, sed, grep, find and tar are not.
coreutils='[ arch b2sum base32 base64 basename basenc cat chcon chgrp chmod chown chroot cksum comm cp csplit cut date dd df dir
dircolors dirname du echo env expand expr factor false fmt fold groups head hostid id install join link ln logname ls md5sum mkdir
mkfifo mknod mktemp mv nice nl nohup nproc numfmt od paste pathchk pinky pr printenv printf ptx pwd readlink realpath rm rmdir
runcon seq sha1sum sha224sum sha256sum sha384sum sha512sum shred shuf sleep sort split stat stdbuf stty sum sync tac tail tee test
timeout touch tr true truncate tsort tty uname unexpand uniq unlink uptime users vdir wc who whoami yes'
for name in make git sh $coreutils; do
    # `command -v` names a built-in command of the shell without its path, `which` is no part of every system.
    for folder in $(IFS=:; set -f; printf '%s\n' $PATH); do
        if [ -f "$folder/$name" ] && [ -x "$folder/$name" ]; then
            ln -sf "$(realpath "$folder/$name")" "$directory/$name"
            break
        fi
    done
done
for name in make git sh; do
    [ -e "$directory/$name" ] || { echo "$0: no $name on PATH" >&2; exit 1; }
done

# Not a link: `python3 -m venv` names the directory that it was started from in the environment, which would then need this
# one for ever; and the python3 on PATH may be a script that needs programs of its own.
python=$(python3 -c 'import os, sys; print(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))')
printf '#!/bin/sh\nexec "%s" "$@"\n' "$python" > "$directory/python3"
chmod +x "$directory/python3"
