//! The rules of the protocol, each taken out of the simulated surroundings: the production code runs as it is, and
//! what it asks for is granted wrongly.

use crate::schedule::ENDING;

/// A rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    IdZeroNotFirst,
    SurplusNotFenced,
    NoBarrier,
    NoGeneration,
    LockUnchecked,
    ReadBeforeFenced,
    FencedStaysDown,
    TwoTransactions,
    UnknownWrittenAgain,
    LeastFrontier,
    GreatestFrontier,
    TransitionsNeverIdle,
    FloorsUnrecorded,
    ExceptionsUnrecorded,
    FloorsBeforeCommit,
    EndsUnrecorded,
    ReplayWithoutWindow,
    ReplayFromPublished,
    ReleasedBeforeCommit,
    DedupNotCarried,
    OutboxNotCarried,
    TenantsNotCarried,
    BacklogNotCarried,
    NewPartitionWithoutFloor,
    NewPartitionUncommitted,
    ScoredAgain,
}

impl Mutation {
    /// Each, with the numbers of the rules that it breaks, a story that tells, and what is done instead.
    pub const ALL: [(Self, &str, u64, &str); 26] = [
        (Self::IdZeroNotFirst, "1", 660, "the generation is read before id 0 is fenced"),
        (Self::SurplusNotFenced, "2", 40, "ids of an earlier, wider run are not fenced"),
        (Self::NoBarrier, "3", 40, "ids but 0 are fenced at their first commit, not before the lock"),
        (Self::NoGeneration, "1, 3", 17, "no generation record is found, so nobody knows how wide the run before was"),
        (Self::LockUnchecked, "3", 77, "a start whose generation record is refused goes on"),
        (Self::ReadBeforeFenced, "4", 0, "checkpoints are read before anything is fenced"),
        (Self::FencedStaysDown, "5", 613, "a fenced run stays down whoever owns the job"),
        (Self::UnknownWrittenAgain, "6", 0, "a commit without answer is written again"),
        (Self::TwoTransactions, "7, 8", 8, "outputs in one transaction, their checkpoint in the next"),
        (Self::FloorsUnrecorded, "7", 0, "checkpoints hold record times only, no floors"),
        (Self::ExceptionsUnrecorded, "7", 8, "checkpoints do not say which records a floor raised"),
        (Self::ReplayWithoutWindow, "7", 20, "a replay starts at the committed frontier, not a window before it"),
        (Self::ReplayFromPublished, "7", 0, "a replay starts where publishing ended"),
        (Self::LeastFrontier, "8", 13, "every shard goes on from the least frontier"),
        (Self::GreatestFrontier, "8", 13, "every shard goes on from the greatest frontier"),
        (Self::DedupNotCarried, "8", 0, "checkpoints hold no dedup state"),
        (Self::TenantsNotCarried, "8", 8, "checkpoints hold neither the tenants' frontier nor their state"),
        (Self::BacklogNotCarried, "8", 8, "checkpoints hold no open backfill windows"),
        (Self::FloorsBeforeCommit, "9", 0, "a floor takes effect when it is proposed"),
        (Self::TransitionsNeverIdle, "9", 0, "the transitions topic has no floors"),
        (Self::EndsUnrecorded, "10", ENDING + 4, "that an input has ended is not recorded"),
        (Self::NewPartitionWithoutFloor, "10", 115, "a new partition starts without floor"),
        (Self::NewPartitionUncommitted, "10", 160, "a new partition's floor is used and not committed"),
        (Self::ReleasedBeforeCommit, "11", 0, "what waits for a commit is released when it begins"),
        (Self::OutboxNotCarried, "8, 12", 0, "the outbox is pruned when it is written, not when the tenants have it"),
        (Self::ScoredAgain, "13", 0, "windows below the committed frontier are scored and written again"),
    ];
}
