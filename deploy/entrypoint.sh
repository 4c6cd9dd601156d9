#!/bin/sh
# Starts a container of the image `train` in its working directory, where a clone is mounted, or an empty volume.
set -eu

# By way of a directory beside it: the volume may hold a lost+found, and a clone that was interrupted is no clone.
if [ -n "${GRPO_RM_REPOSITORY:-}" ] && [ ! -e .git ]; then
    rm -rf .clone
    git clone --quiet --no-checkout "$GRPO_RM_REPOSITORY" .clone
    mv .clone/.git .git
    rmdir .clone
    git reset --quiet --hard
fi

# DVC takes an entry of its rwlock for dead when no process has its pid. Pids repeat in containers, so an entry that a
# killed container left would block for ever. The first container on a clone removes it; its lock is the command's.
if [ -d .dvc ]; then
    mkdir -p .dvc/tmp
    exec 9>.dvc/tmp/container.lock
    if flock --nonblock 9; then
        rm -f .dvc/tmp/rwlock*
    fi
fi

exec "$@"
