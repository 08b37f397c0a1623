#!/usr/bin/env python3
"""The bank of planted bugs: the tests of the tests.

A build with DURAMEN_BUG_BANK holds every planted bug; the environment variable DURAMEN_BUG chooses
one at run time. Each must make the named test fail, and with none chosen the same test must pass. Prints
a table; exit 1 if a bug goes unnoticed.

    tests/bugs/bank.py [--build FOLDER] [NUMBER ...]
"""

import argparse
import os
import subprocess
import sys

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# number: (what is wrong, the build target that holds the check, the command from the build folder)
SIM = "tests/sim/test_sim 8"
SIM_CLUSTER = "tests/sim/test_sim_cluster 20"


def unit(folder, name, test="*"):
    return "tests/%s/%s --filter '%s' -j1 --timeout 120" % (folder, name, test)


def blackbox(script, test):
    return "python3 %s/tests/blackbox/%s %s" % (SOURCE, script, test)


BUGS = {
    1: ("a record is reported durable when it is submitted, not when it is on disk", "test_wal", unit("wal", "test_wal", "wal/nothing_is_durable_before_its_write_has_ended")),
    2: ("damage in the middle of the log is cut off as if it were a torn tail", "test_recovery", unit("wal", "test_recovery", "recovery/a_flip_anywhere_in_the_log_is_damage_and_never_a_shorter_log")),
    3: ("a failed log write is ignored", "test_wal", unit("wal", "test_wal", "wal/a_failed_write_poisons_the_log_for_good")),
    4: ("stale batches of a recycled slot are accepted", "test_recovery", unit("wal", "test_recovery", "recovery/a_stale_batch_of_an_earlier_life_is_not_taken")),
    5: ("a torn batch is accepted if its header is whole", "test_record", unit("wal", "test_record", "record/every_flipped_bit_of_a_batch_is_seen")),
    6: ("slots are recycled one segment too early", "test_crash", unit("wal", "test_crash", "crash/power_cut_at_every_operation")),
    7: ("the checksum of a stored value is not looked at", "test_kv_value", unit("storage", "test_kv_value")),
    8: ("an overwrite in place keeps the old expiry", "test_memtable", unit("storage", "test_memtable")),
    9: ("a deleted key shows again from an older layer", "test_memtable", unit("storage", "test_memtable")),
    10: ("the expiry index keeps the entry of an overwritten key", "test_kv", unit("contract", "test_kv")),
    11: ("a reply leaves before its record is durable", "test_session", unit("server", "test_session", "session/a_write_is_answered_when_it_is_durable_and_not_before")),
    12: ("a read behind a held-back write sees the state before it", "test_session", unit("server", "test_session", "session/a_read_behind_a_write_of_the_same_client_sees_it_and_waits_with_it")),
    13: ("the output limit is not enforced", "test_session", unit("server", "test_session", "session/a_reply_over_the_output_limit_ends_the_connection")),
    14: ("EXEC does not notice that a watched key was deleted", "duramen", blackbox("commands.py", "test_exec_sees_that_a_watched_key_was_deleted")),
    15: ("SET without KEEPTTL keeps the old expiry", "duramen", blackbox("commands.py", "test_set_without_keepttl_forgets_the_expiry")),
    16: ("INCR does not see increments that are not yet committed", "duramen", blackbox("commands.py", "test_pipelined_increments_all_count")),
    17: ("a backup mixes states: what changed while its image was read is in it", "test_backup", unit("storage", "test_backup", "backup/changes_while_the_image_is_read_stay_out_of_it")),
    18: ("restore does not look at a block's checksum", "test_backup", unit("storage", "test_backup", "backup/every_flipped_byte_and_every_cut_is_refused")),
    19: ("a second process may open the folder", "test_folder", unit("storage", "test_folder", "folder/a_second_process_is_refused_and_told_who_has_it")),
    20: ("the applied index is written before the data", "test_sim", SIM),
    21: ("a checkpoint forgets deletions", "test_sim", SIM),
    22: ("keys of the sealed memtable are not counted", "test_sim", SIM),
    23: ("commands do not see what is proposed but not committed", "test_sim", SIM),
    24: ("a checkpoint does not clear a cleared bucket", "test_sim", SIM),
    25: ("recovery does not replay a clear", "test_sim", SIM),
    26: ("expired keys are still shown", "test_sim", SIM),
    27: ("recovery does not make durable what it read", "test_cache", unit("wal", "test_cache")),
    28: ("an entry of an earlier term is committed by counting", "test_raft", unit("cluster", "test_raft", "raft/an_entry_of_an_earlier_term_is_not_committed_by_counting")),
    29: ("an election starts without a pre-vote", "test_raft", unit("cluster", "test_raft", "raft/a_node_that_cannot_win_does_not_raise_the_term")),
    30: ("a node votes twice in a term", "test_raft", unit("cluster", "test_raft", "raft/a_node_votes_once_in_a_term")),
    31: ("a stale append shortens the log", "test_raft", unit("cluster", "test_raft", "raft/an_old_append_never_shortens_the_log")),
    32: ("a heartbeat commits beyond what matches", "test_raft", unit("cluster", "test_raft", "raft/a_heartbeat_does_not_commit_what_may_not_match")),
    33: ("a joint configuration decides with one majority", "test_raft_swarm", unit("cluster", "test_raft_swarm", "raft_swarm/all_holds_and_the_group_recovers")),
    34: ("a learner is counted for the commit", "test_raft", unit("cluster", "test_raft", "raft/a_learner_is_never_counted")),
    35: ("a read is answered before a majority was heard", "test_raft_swarm", unit("cluster", "test_raft_swarm", "raft_swarm/all_holds_and_the_group_recovers")),
    36: ("a new leader answers reads before an entry of its own term is committed", "test_raft", unit("cluster", "test_raft", "raft/no_reads_before_an_own_entry_is_committed")),
    37: ("the end of a write that was overtaken counts for the entry that replaced it", "test_raft", unit("cluster", "test_raft", "raft/a_write_that_was_overtaken_is_not_taken_for_durable")),
    42: ("what is said of an older incarnation of a node is believed", "test_swim", unit("cluster", "test_swim", "swim/an_old_incarnation_changes_nothing")),
    43: ("a dead node is resurrected by a replayed message", "test_swim", unit("cluster", "test_swim", "swim/a_replayed_alive_does_not_wake_the_dead")),
    44: ("a suspicion never ends while the connection stands", "test_swim", unit("cluster", "test_swim", "swim/a_frozen_peer_times_out_though_its_connection_stands")),
    49: ("a wiped node is taken under its old name", "test_members", unit("cluster", "test_members", "members/a_wiped_node_is_not_taken_under_its_old_name")),
    50: ("a removal that loses a majority is accepted", "test_members", unit("cluster", "test_members", "members/a_removal_that_would_lose_a_majority_is_refused")),
    51: ("a live voter is removed before the dead one", "test_reconcile", unit("cluster", "test_reconcile", "reconcile/dead_voters_go_before_live_ones")),
    52: ("placement ignores zones", "test_place", unit("cluster", "test_place", "place/every_range_has_its_replicas_in_as_many_zones_as_there_are")),
    53: ("a reply whose outcome is not known leaves as if it were", "test_routing", unit("server", "test_routing", "routing/an_outcome_that_is_not_known_is_an_error_in_its_place")),
    54: ("a forwarded command of unknown outcome is sent again", "test_routing", unit("server", "test_routing", "routing/what_became_of_a_forwarded_command_is_told_and_never_tried_again")),
    55: ("every connection reads what this node has, however old", "test_routing", unit("server", "test_routing", "routing/only_a_readonly_connection_reads_what_this_node_has")),
    45: ("half a snapshot passes for a whole one", "test_replicated", unit("storage", "test_replicated", "replicated/a_snapshot_that_came_in_part_never_passes_for_whole")),
    46: ("a range's index is written before its data", "test_replicated", unit("storage", "test_replicated", "replicated/a_crash_between_any_two_steps_of_a_checkpoint_loses_nothing")),
    47: ("the log is trimmed although others need its records", "test_replicated", unit("storage", "test_replicated", "replicated/records_that_others_need_stay_in_the_log")),
    48: ("clearing a bucket of one range clears it in all", "test_replicated", unit("storage", "test_replicated", "replicated/a_clear_is_of_one_range")),
    38: ("frames for an earlier process of the node are taken: what was recorded then can be played again", "test_net_nng", unit("cluster", "test_net_nng", "net_nng/what_was_recorded_cannot_be_played_again")),
    39: ("a process of an earlier start speaks for its number again", "test_net_gate", unit("cluster", "test_net_gate", "net_gate/a_later_start_replaces_an_earlier_one_for_good")),
    40: ("a frame that came already is delivered again", "test_net_nng", unit("cluster", "test_net_nng", "net_nng/what_was_recorded_cannot_be_played_again")),
    41: ("packets that wait are delivered last first", "test_net_nng", unit("cluster", "test_net_nng", "net_nng/frames_arrive_once_and_in_order_on_every_lane")),
    56: ("a message leaves before what it rests on is durable", "test_sim_cluster", SIM_CLUSTER),
    57: ("a restart applies what was only logged", "test_sim_cluster", SIM_CLUSTER),
    59: ("votes and terms are not logged", "test_sim_cluster", SIM_CLUSTER),
    60: ("a replica leaves out an entry now and then", "test_sim_cluster", SIM_CLUSTER),
    62: ("a forwarded write of unknown outcome is sent again", "test_sim_cluster", SIM_CLUSTER),
}


def fails(command, bug, build):
    environment = dict(os.environ, DURAMEN=os.path.join(build, "duramen"), SOURCE=SOURCE, BUILD=build)
    environment["DURAMEN_BUG"] = str(bug)
    try:
        done = subprocess.run(command, shell=True, cwd=build, env=environment, timeout=300,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired:
        return True
    if b"Tested: 0 " in done.stdout:
        sys.exit("no such test: " + command)
    return done.returncode != 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default=os.path.join(SOURCE, "build", "bugs"))
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("numbers", nargs="*", type=int)
    arguments = parser.parse_args()
    chosen = arguments.numbers or sorted(BUGS)
    if not arguments.no_build:
        targets = sorted({target for number in chosen for target in BUGS[number][1].split()})
        subprocess.run(["cmake", "--preset", "bugs", "-B", arguments.build], cwd=SOURCE, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cmake", "--build", arguments.build, "--target", *targets], check=True, stdout=subprocess.DEVNULL)
    sound = {}
    missed = 0
    for number in chosen:
        what, _, command = BUGS[number]
        if command not in sound:
            sound[command] = not fails(command, 0, arguments.build)
        if not sound[command]:
            verdict = "the check fails without any bug"
        elif fails(command, number, arguments.build):
            verdict = "caught"
        else:
            verdict = "MISSED"
        missed += verdict != "caught"
        print("%2d  %-7s %s\n      by %s" % (number, verdict, what, command.replace(SOURCE + "/", "")), flush=True)
    print("%d planted bugs, %d caught" % (len(chosen), len(chosen) - missed))
    return 1 if missed else 0


sys.exit(main())
