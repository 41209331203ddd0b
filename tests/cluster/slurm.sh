#!/usr/bin/env bash
# SLURM on this one machine, without systemd:  tests/cluster/slurm.sh start|stop FOLDER   (as root)
# Debian: apt-get install slurm-wlm munge. State, logs and configuration are in FOLDER, and go with it.
set -euo pipefail
what=$1 folder=$(realpath -m "$2") node=$(hostname -s)
conf=/etc/slurm/slurm.conf # where jobs look, whatever the environment says

stop() {
  if [ "$(readlink "$conf")" = "$folder/slurm.conf" ]; then rm "$conf"; fi
  for name in slurmd slurmctld munged; do
    if [ -f "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")" 2>/dev/null || true; fi
  done
}

start() {
  mkdir -p "$folder/state" "$folder/spool" "$folder/munge"
  chmod 755 "$folder"
  chmod 711 "$folder/munge"
  dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
  chmod 400 "$folder/munge/key"
  munged --force --key-file "$folder/munge/key" --socket "$folder/munge/socket" --pid-file "$folder/munged.pid" \
    --log-file "$folder/munge/log" --seed-file "$folder/munge/seed"
  cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$node
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=5
OverTimeLimit=0
MinJobAge=600
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  if [ -e "$conf" ]; then
    echo "there is a $conf already: this machine has a SLURM of its own" >&2
    exit 1
  fi
  rm -f "$conf"
  ln -s "$folder/slurm.conf" "$conf"
  slurmctld -c
  slurmd -N "$node"
  for _ in $(seq 60); do
    if sinfo --noheader --format=%t 2>/dev/null | grep -q -E "idle|mix|alloc"; then return; fi
    sleep 1
  done
  echo "SLURM did not start. The end of its logs:" >&2
  tail -n 5 "$folder"/*.log >&2
  exit 1
}

trap 'exit 1' INT TERM
"$what"
