#!/bin/sh
# Submits one of the scripts, `sh submit.sh NAME`, in a folder that holds it: as it is, or as it stands below.
# `sbatch` prints the number of what it submitted, as with --parsable.
export FROM_THE_SHELL=yes OTHER_OF_THE_SHELL=too
script=$1.slurm
case $1 in
034-*) sbatch -J cli --ntasks=3 "$script" ;;
035-*) SBATCH_JOB_NAME=variable SBATCH_TIMELIMIT=5 sbatch -n 2 "$script" ;;
037-*) scontrol release "$(sbatch "$script")" ;;
039-*) sbatch "$script" one "two words" '' '*' ;;
082-*) sbatch --array=2-3 "$script" ;;
090-*) first=$(sbatch "$script" first) && sbatch -d "afterok:$first" "$script" second ;;
091-*) first=$(sbatch "$script" first 1) && sbatch -d "afternotok:$first" "$script" second 0 ;;
092-*)
    failed=$(sbatch "$script" first 1) && sbatch -d "afterok:$failed" "$script" second 0
    passed=$(sbatch -d "afterany:$failed" "$script" third 0) && sbatch -d "afternotok:$passed" "$script" fourth 0
    ;;
093-*)
    first=$(sbatch "$script" first 1) && second=$(sbatch -d "afterany:$first" "$script" second 0)
    sbatch -d "afterany:$second" "$script" third 0
    ;;
094-*) first=$(sbatch "$script" 1) && second=$(sbatch "$script" 2) && sbatch -d "afterok:$first:$second" "$script" 9 ;;
095-*)
    first=$(sbatch "$script" first 0) && second=$(sbatch -d "afterok:$first" "$script" second 3)
    sbatch -d "afterok:$first,afternotok:$second" "$script" third 0
    sbatch -d "afterok:$first,afterok:$second" "$script" never 0
    ;;
096-*)
    first=$(sbatch "$script" first 1) && second=$(sbatch "$script" second 0)
    sbatch -d "afterok:$first?afterok:$second" "$script" last 0
    ;;
097-*) sbatch "$script" && sbatch "$script" && sbatch "$script" ;;
098-*) first=$(sbatch "$script" first) && sbatch -d "after:$first" "$script" second ;;
099-*) first=$(sbatch "$script" first) && sbatch -d "aftercorr:$first" "$script" second ;;
100-*) array=$(sbatch -a 1-3 "$script") && sbatch -d "afterok:$array" "$script" ;;
101-*)
    array=$(sbatch -a 1-2 "$script") && sbatch -d "afterok:${array}_2" "$script"
    sbatch -d "afterok:$array" "$script"
    ;;
102-*) first=$(sbatch "$script" 1) && sbatch -d "afterok:$first" --kill-on-invalid-dep=yes "$script" 0 ;;
103-*)
    last=$(sbatch "$script" 1)
    for n in 2 3 4; do last=$(sbatch -d "afterok:$last" "$script" $n); done
    ;;
105-*)
    held=$(sbatch -H "$script" held)
    sbatch -d "afterok:$held" "$script" never
    sbatch -d "afternotok:$held" "$script" "not ok"
    sbatch -d "afterany:$held" "$script" any
    scancel "$held"
    ;;
114-* | 115-*) echo old >kept.txt && sbatch "$script" ;;
122-* | 123-*) mkdir sub && sbatch "$script" ;;
124-*) echo input >in.txt && sbatch "$script" ;;
132-*) sbatch -o "$PWD/absolute.txt" "$script" one ;;
151-*) sbatch "$script" -- '' ' ' '$HOME' '"' "'" '\n' 'ž' ;;
152-*) sbatch -n 1 "$script" -n 5 -v rest --array=3 ;;
154-*) umask 077 && sbatch "$script" ;;
157-*) for code in 0 1 2 77 126 127 128 137 143 255 256; do sbatch -o "$code.out" "$script" $code; done ;;
158-*) for signal in KILL TERM INT USR1 SEGV ABRT; do sbatch -o "$signal.out" "$script" $signal; done ;;
166-*) sbatch "$script" --lr 0.5 a.txt "b c.txt" ;;
174-*) BIG=$(head -c 100000 /dev/zero | tr '\0' x) && export BIG && sbatch "$script" ;;
176-* | 252-*) echo given >given.txt && sbatch "$script" ;;
267-*) scancel "$(sbatch --hold "$script")" ;;
268-*)
    number=$(sbatch "$script")
    while [ ! -e begun ]; do sleep 0.1; done
    scancel "$number"
    ;;
270-*) sbatch <"$script" ;;
271-*) sbatch --wrap='echo "$SLURM_JOB_NAME" && see batch' ;;
272-*) sbatch -J piped <"$script" ;;
273-*)
    for n in 1 2; do
        sbatch <<END
#!/bin/bash
#SBATCH -J heredoc-$n -n $n
echo "\$SLURM_JOB_NAME $n"
END
    done
    ;;
274-*) mkdir sub && cd sub && sbatch "../$script" ;;
275-*) cp "$script" "a script.sh" && sbatch "a script.sh" ;;
276-*) chmod 600 "$script" && sbatch "$script" ;;
277-*) sbatch -N 1 --time 5 -J=odd --comment "a b" --open-mode append "$script" ;;
*) sbatch "$script" ;;
esac
