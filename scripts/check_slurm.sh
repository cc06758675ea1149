#!/usr/bin/env bash
# A grid as a job array of a real Slurm: eight tasks, two of them killed and queued again, others told to save by a time limit. The table must
# be that of one process without Slurm.
#
#     scripts/check_slurm.sh target/release/vpt
#
# Slurm's daemons are started by hand on this machine, as root and without accounting; Debian's packages are fetched and unpacked into
# a folder, not installed. Takes some eight minutes. Exit code 1 if a table differs or the array did not go as it should.
set -euo pipefail

vpt=$(realpath "${1:?the program}")
work=$(mktemp -d)
slurm=$work/slurm
mkdir -p "$slurm"/{root,state,spool}
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    [ -n "${KEEP:-}" ] && echo "kept: $work" || rm -rf "$work"
}
trap finish EXIT

if ! command -v slurmctld slurmctld-wlm >/dev/null; then
    packages="slurmctld slurmd slurm-client slurm-wlm-basic-plugins libmunge2 libhwloc15 liblua5.1-0 libjansson4 libhttp-parser2.9"
    # Libraries that are there already need not be fetched.
    (cd "$slurm" && for package in $packages; do apt-get download -qq "$package" 2>/dev/null || echo "not fetched: $package"; done)
    for package in "$slurm"/*.deb; do dpkg -x "$package" "$slurm/root"; done
    export PATH="$slurm/root/usr/sbin:$slurm/root/usr/bin:$PATH"
    LD_LIBRARY_PATH=$(find "$slurm/root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
    export LD_LIBRARY_PATH
fi
plugins=$(find "$slurm/root" /usr/lib -type d -name slurm-wlm 2>/dev/null | head -1)
# Debian's names end in -wlm.
program() { command -v "$1" || command -v "$1-wlm" || { echo "no $1" >&2; exit 1; }; }
ctld=$(program slurmctld) slurmd=$(program slurmd) stepd=$(program slurmstepd)
host=$(hostname -s)
export SLURM_CONF=$slurm/slurm.conf
cat > "$SLURM_CONF" <<CONF
ClusterName=vpt
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$slurm/state
SlurmdSpoolDir=$slurm/spool
SlurmctldPidFile=$slurm/ctld.pid
SlurmdPidFile=$slurm/slurmd.pid
SlurmctldLogFile=$slurm/ctld.log
SlurmdLogFile=$slurm/slurmd.log
${plugins:+PluginDir=$plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$slurm/jobcomp.txt
SchedulerType=sched/builtin
ReturnToService=2
KillWait=10
JobRequeue=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

# In a folder that compute nodes would share.
cd "$work"
"$vpt" data make shapes --out data --images 480 --seed 3 --quiet >/dev/null
grid=(bench few-shot --data data --methods linear,vpt-shallow,vpt-deep --shots 2,8 --seeds 1,2 --epochs "${EPOCHS:-60}" --threads 1)
"$vpt" "${grid[@]}" --out one --quiet > one.txt

"$ctld" -D -f "$SLURM_CONF" > "$slurm/ctld.out" 2>&1 & pids+=($!)
sleep 3
"$slurmd" -D -f "$SLURM_CONF" -d "$stepd" > "$slurm/slurmd.out" 2>&1 & pids+=($!)
for _ in $(seq 30); do sinfo -h -o %t 2>/dev/null | grep -q idle && break; sleep 2; done
sinfo -h -o %t | grep -q idle || { echo "no node is idle"; tail -5 "$slurm"/*.log "$slurm"/*.out; exit 1; }

"$vpt" cluster slurm --tasks 8 --cpus 1 --memory 300MB --time 0:01:00 --warn 30 --program "$vpt" -- "${grid[@]}" --out array > job.sh
job=$(sbatch --parsable job.sh)
echo "job $job"
# Two of the tasks are killed while they work, and queued again.
killed=0
for _ in $(seq 600); do
    while read -r id state; do
        if [ "$state" = RUNNING ] && [ "$killed" -lt 2 ] && [[ ! " ${done_ids:-} " == *" $id "* ]]; then
            sleep 4
            if scontrol requeue "$id" 2>/dev/null; then killed=$((killed + 1)); done_ids="${done_ids:-} $id"; echo "killed and queued again: $id"; fi
        fi
        # What is queued again is held back for two minutes, which nobody here needs.
        if [ "$state" = PENDING ]; then scontrol update jobid="$id" starttime=now 2>/dev/null || true; fi
    done < <(squeue -h -r -j "$job" -o '%i %T' 2>/dev/null)
    [ -z "$(squeue -h -j "$job" 2>/dev/null)" ] && break
    sleep 2
done
[ -z "$(squeue -h -j "$job" 2>/dev/null)" ] || { echo "the array does not end"; squeue; tail -3 few-shot-*.log; exit 1; }

saved=$(cat few-shot-*.log | grep -c 'error: interrupted' || true)
echo "killed $killed, saved by a signal $saved; states: $(grep -o 'JobState=[A-Z]*' "$slurm/jobcomp.txt" | sort | uniq -c | tr '\n' ' ')"
"$vpt" bench merge array > /dev/null
cmp one/table.md array/table.md || { tail -2 few-shot-*.log; exit 1; }
cmp one/table.tex array/table.tex
[ "$killed" -eq 2 ] || { echo "not two were killed"; exit 1; }
[ "$saved" -ge 1 ] || { echo "the time limit reached none"; exit 1; }
echo "the table of the array is that of one process"
