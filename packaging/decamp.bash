# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
#
# Completion of decamp(1) for bash: verbs, options, names of jobs and machines.

_decamp_column()
{
	# First column of a table, without its title. A daemon that is away gives nothing.
	timeout 2 decamp "$@" 2>/dev/null | awk 'NR > 1 { print $1 }'
}

_decamp_options()
{
	local common='--json --socket --help'

	case $1 in
	run) echo "--name --every --fence --needs --file --cwd --no-cwd --input --env --stdin --wait $common" ;;
	adopt) echo "--name --every --fence --needs $common" ;;
	ps) echo "--all $common" ;;
	logs) echo "--follow --stderr $common" ;;
	restore) echo "--on $common" ;;
	export) echo "--core --pid --mapped-files --files --images $common" ;;
	mount) echo "--foreground $common" ;;
	'folder create') echo "--keep --every $common" ;;
	kill) echo "--signal $common" ;;
	nodes) echo "--credit $common" ;;
	vacate) echo "--undo $common" ;;
	'cluster init' | 'cluster join') echo "--room --addr --port $common" ;;
	'cluster invite') echo "--ttl $common" ;;
	*) echo "$common" ;;
	esac
}

_decamp()
{
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb='' i word
	local verbs='run adopt ps show why logs history recover wait ckpt migrate restore freeze thaw kill
		ls cat export mount folder check nodes vacate doctor cluster version help'
	local after=0

	COMPREPLY=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if [[ $word == --socket ]]; then
			((i++))
		elif [[ -z $verb && $word != -* ]]; then
			verb=$word
			after=$i
		elif [[ $verb == cluster && $word != -* ]]; then
			verb="cluster $word"
			after=$i
		elif [[ $verb == folder && $word =~ ^(create|delete)$ ]]; then
			verb="folder $word"
			after=$i
		elif [[ $verb == run && $word == -- ]]; then
			_decamp_command $((i + 1))
			return
		fi
	done

	case $prev in
	--socket | --input | --stdin | --file) _decamp_files -f; return ;;
	--cwd | --files | --images) _decamp_files -d; return ;;
	--core) _decamp_files -f; return ;;
	--fence) mapfile -t COMPREPLY < <(compgen -W 'strict commit' -- "$cur"); return ;;
	--on) mapfile -t COMPREPLY < <(compgen -W "$(_decamp_column nodes)" -- "$cur"); return ;;
	-s | --signal) mapfile -t COMPREPLY < <(compgen -A signal -- "$cur"); return ;;
	--name | --every | --needs | --env | --pid | --room | --addr | --port | --ttl) return ;;
	esac

	if [[ -z $verb ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$verbs --json --socket --help --version" -- "$cur")
	elif [[ $cur == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$(_decamp_options "$verb")" -- "$cur")
	else
		_decamp_words "$verb" $((COMP_CWORD - after))
	fi
}

_decamp_files()
{
	compopt -o filenames 2>/dev/null
	mapfile -t COMPREPLY < <(compgen "$1" -- "$cur")
}

# The words after "run --" are a command line of their own.
_decamp_command()
{
	if ((COMP_CWORD == $1)) && [[ $cur != */* ]]; then
		mapfile -t COMPREPLY < <(compgen -c -- "$cur")
	else
		_decamp_files -f
	fi
}

_decamp_words()
{
	case $1 in
	run) if [[ $cur == */* ]]; then _decamp_files -f; else
		mapfile -t COMPREPLY < <(compgen -c -- "$cur"); fi ;;
	show | why | logs | history | recover | wait | ckpt | restore | freeze | thaw | kill | ls | cat | \
		export)
		mapfile -t COMPREPLY < <(compgen -W "$(_decamp_column ps -a)" -- "$cur") ;;
	migrate)
		if (($2 == 1)); then
			mapfile -t COMPREPLY < <(compgen -W "$(_decamp_column ps)" -- "$cur")
		else
			mapfile -t COMPREPLY < <(compgen -W "$(_decamp_column nodes)" -- "$cur")
		fi ;;
	mount) _decamp_files -d ;;
	adopt | check) mapfile -t COMPREPLY < <(compgen -W "$(ps -u "$UID" -o pid=)" -- "$cur") ;;
	folder) mapfile -t COMPREPLY < <(compgen -W "create delete $(_decamp_column folder)" -- "$cur") ;;
	'folder delete') mapfile -t COMPREPLY < <(compgen -W "$(_decamp_column folder)" -- "$cur") ;;
	cluster) mapfile -t COMPREPLY < <(compgen -W 'init invite join' -- "$cur") ;;
	help) mapfile -t COMPREPLY < <(compgen -W "$verbs" -- "$cur") ;;
	esac
}

complete -F _decamp decamp
