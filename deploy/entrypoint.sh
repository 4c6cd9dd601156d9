#!/bin/sh
# Starts a container of the image `train` on the clone at /workspace.
set -eu

if [ -n "${GRPO_RM_REPOSITORY:-}" ] && [ ! -e /workspace/.git ]; then
    git clone "$GRPO_RM_REPOSITORY" /workspace
fi

# DVC takes an entry of its rwlock for dead when no process has its pid. Pids repeat in containers, so an entry that a killed
# container left would block for ever. The first container on a clone removes such entries; its lock is held by the command.
if [ -d /workspace/.dvc ]; then
    mkdir -p /workspace/.dvc/tmp
    exec 9>/workspace/.dvc/tmp/container.lock
    if flock --nonblock 9; then
        rm -f /workspace/.dvc/tmp/rwlock*
    fi
fi

exec "$@"
