//! Words that this project has retired, each with the term to use instead.
//!
//! Words of a phrase are separated by spaces, variants of one word by `|`. A line cannot except itself: where
//! an API demands a word, [`EXCEPTIONS`] names the file and the reason.

/// Words, and what to say instead.
pub(super) type Term = (&'static str, &'static str);

/// Words that one file may contain.
pub(super) struct Exception {
    /// The file's path from the workspace's directory.
    pub file: &'static str,
    /// The term, as it is in its list.
    pub words: &'static str,
    /// Why the API demands it.
    pub reason: &'static str,
}

/// The only uses that stay.
pub(super) const EXCEPTIONS: &[Exception] = &[
    Exception { file: "README.md", words: PORTS_REST, reason: "documents the alias of a flag" },
    Exception { file: "CHANGELOG.md", words: PORTS_REST, reason: "documents the alias of a flag" },
    Exception {
        file: "portmap-user/src/paths.rs",
        words: "resting",
        reason: "names the file resting.json, which daemons of earlier versions have written",
    },
    Exception {
        file: "portmap-user/src/settings/raw.rs",
        words: PORTS_REST,
        reason: "declares the alias --ephemeral-ports-rest of --ephemeral-ports-quarantine",
    },
    Exception {
        file: "portmap-user/src/settings/tests.rs",
        words: PORTS_REST,
        reason: "tests the alias of the flag",
    },
];

/// The words of the old name of a flag, which remains its alias.
const PORTS_REST: &str = "ports rest|rests|resting|rested";

/// Refused in comments, strings, Markdown, scripts and as parts of identifiers, in upper and lower case.
pub(super) const EVERYWHERE: &[Term] = &[
    // People in place of mechanisms.
    ("somebody|anybody|everybody|nobody|whoever|whomever", ACTOR),
    ("whom", "who the actor is, in an active sentence"),
    ("to|for|by|of|from who", "the noun: users, clients, operators"),
    // Relative clauses in place of nouns.
    ("what is|was", "the noun: excess traffic, desired state, actual state, leftovers"),
    ("whatever is|was|it|they", "the noun; idempotent, if the function accepts every state"),
    ("meant to be", "desired or expected"),
    ("is|are|was|were to be", "must, or desired"),
    // Things that act like people.
    ("news", "events or notifications"),
    ("tell|tells|telling|told of", "report or notify"),
    ("take|takes|taking|took no notice", "ignore"),
    ("bring|brings|bringing|brought about", "implement or cause"),
    ("see|sees|seeing to it|that", "ensure"),
    ("put|puts|putting back", "restore, reattach or repair"),
    ("look|looks|looked|looking after", "reconcile or monitor"),
    ("looks|looking|looked at everything", "full resync"),
    ("none of its business", "not checked"),
    ("own affair", "affects only that container"),
    ("no worse for", "idempotent"),
    ("as wide as can be", "at the maximum rate"),
    ("anew|lest|hitherto|thereby", "again, so that, until now, by that"),
    ("makes no sense", "cannot be decoded, or is invalid"),
    // Ports in quarantine and the retry interval.
    (PORTS_REST, "quarantine"),
    ("resting", "quarantined"),
    // Tables, maps and files.
    ("of another form", "has an incompatible layout"),
    ("half adding|added|deleting|deleted", "left in state adding or deleting"),
];

const ACTOR: &str =
    "the actor: the daemon, the kernel, another process or tool, the operator, a client, no container";

/// Refused as parts of identifiers, in Rust and between backticks in prose.
pub(super) const IDENTIFIER_PARTS: &[Term] = &[
    // Packets.
    ("just tell", "ReturnVerdict"),
    ("finisher", "SkbSink"),
    ("settle|settles|settled|settling|unsettled", "linearize, reconcile, install, attach or DEBOUNCE"),
    ("leave to", "tail_call"),
    ("this station", "is_packet_host"),
    ("quoted source|ports", "inner_src"),
    ("renumber|renumbered|renumbers", "IcmpIdRewrite, rewrite_icmp_id"),
    ("host asks", "reserve_for_host"),
    ("asked mark", "DRY_RUN_MARK"),
    // The daemon.
    ("wishes", "TrafficSpec, traffic"),
    ("in turn", "locked: delete_locked"),
    ("drop news", "DropStreamItem"),
    ("suspects", "tc_removed_on"),
    ("bring back", "reconcile_container"),
    ("attend to", "reconcile_one"),
    ("mend|mends|mended|mending", "repair, reconcile; RepairReport"),
    ("hold outside", "ensure_host_side_limits"),
    ("at least outside", "apply_or_police"),
    ("hold without namespace", "reconcile_detached"),
    ("follow host", "refresh_host"),
    ("dismantle|dismantles|dismantled", "deprovision"),
    ("enter service", "publish"),
    ("namespace before", "SavedNetns"),
    ("outlasted", "drain_timeout"),
    ("map shape", "MapSpec"),
    ("occupant", "RootQdisc"),
    // Tests.
    ("ask in vain", "expect_no_reply"),
];

/// Refused as whole identifiers, in this spelling.
pub(super) const IDENTIFIERS: &[Term] = &[
    // Packets.
    ("Depth", "ParsePath, with FastPath and SlowPath"),
    ("is_plain", "is_fast_path"),
    ("Finish|Finished", "VerdictSink, ControlFlow"),
    ("InMemory|in_memory", "PacketBuf, packet_buf"),
    ("recall", "frag_cache::lookup"),
    ("asker", "lookup_owner"),
    ("may_have", "is_allowed_source"),
    ("Decided|InFlow", "AlreadyHandled, AssignFlow"),
    ("admits", "conforms"),
    ("Guarded", "NetnsOwner"),
    ("dropping", "drop"),
    // The daemon.
    ("Turns|turns", "KeyedLock, keyed_lock"),
    ("Feed|Follower|followers", "Broadcaster, Subscription, drop_stream"),
    ("HostFacts", "HostState"),
    ("sweep", "orphans"),
    ("unshare_queue|unshare_qdisc", "remove_uplink_fq"),
    ("Mechanism", "AttachMode"),
    ("Place", "HookPoint, L4Location or Netns"),
    // Tests.
    ("standin", "fake_tables"),
    ("Fate|fate", "expected"),
    ("Sheet|paper", "Figure, canvas"),
    ("proof", "verify"),
    ("around", "bypass"),
    ("struck", "fault_fired"),
];
