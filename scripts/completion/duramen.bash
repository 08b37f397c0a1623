# bash completion of duramen; made by `duramen completion bash`
_duramen()
{
    local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} words
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        words='serve status member leader backup restore verify bench sim passwd config completion version help --help --version'
    else
        case $command in
        serve) words=' --data --listen --http --peer --join --join-timeout --cluster-secret-file --name --zone --replicas --deadline-ms --leases --ranges --memory --log-bytes --log-io --io --requirepass --password-file --connections --output-limit --client-memory --idle-timeout --slowlog-us --slowlog-len --enable-debug-command --scrub --accept-loss --allowed-hosts --log-level --log-format --config --help' ;;
        status) words=' --node --password-file --json --help' ;;
        member) words='list remove replace --node --password-file --help' ;;
        leader) words='transfer --node --password-file --range --help' ;;
        backup) words=' --node --password-file --out --help' ;;
        restore) words=' --in --data --dry-run --help' ;;
        verify) words=' --help' ;;
        bench) words=' --node --engine --workload --clients --pipeline --rate --seconds --requests --warmup --rounds --value-size --keys --distribution --load --json --plot --help' ;;
        sim) words=' --seed --runs --nodes --ticks --scenario --verbose --help' ;;
        passwd) words=' --help' ;;
        config) words='check show list --data --listen --http --peer --join --join-timeout --cluster-secret-file --name --zone --replicas --deadline-ms --leases --ranges --memory --log-bytes --log-io --io --requirepass --password-file --connections --output-limit --client-memory --idle-timeout --slowlog-us --slowlog-len --enable-debug-command --scrub --accept-loss --allowed-hosts --log-level --log-format --config --help' ;;
        completion) words='bash zsh fish --help' ;;
        version) words=' --help' ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -o default -F _duramen duramen
