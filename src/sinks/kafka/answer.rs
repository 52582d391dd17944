//! What a broker's error codes mean (Kafka's protocol guide, "Error Codes").
//!
//! | code | means |
//! |---|---|
//! | none, `DUPLICATE_SEQUENCE_NUMBER` | taken |
//! | `MESSAGE_TOO_LARGE`, `RECORD_LIST_TOO_LARGE`, `INVALID_RECORD`, `INVALID_TIMESTAMP` | something is wrong with one of the records that went together: it is found and refused |
//! | `NOT_LEADER_OR_FOLLOWER` and the like | the partition is led by another broker now: that one is asked |
//! | `REQUEST_TIMED_OUT`, `NOT_ENOUGH_REPLICAS_AFTER_APPEND` | it may be there: asked again, with the same sequence number |
//! | `UNKNOWN_PRODUCER_ID`, `OUT_OF_ORDER_SEQUENCE_NUMBER` and the like | the broker does not know this producer (any more) |
//! | no such topic, no right to it | of a topic that the event has chosen: what is for it is refused; else nothing is taken now |
//! | anything else (full disk, too few replicas, no right, quota) | nothing is taken now, and nothing is counted |

use kafka_protocol::error::ResponseError as Code;

/// There is no such topic.
pub(super) const UNKNOWN_TOPIC: i16 = 3;

/// The user may not do that with the topic.
pub(super) const NOT_AUTHORIZED: i16 = 29;

/// The number was taken before.
pub(super) const DUPLICATE: i16 = 46;

/// Something else of the same request was refused.
pub(super) const NOT_ATTEMPTED: i16 = 55;

/// Nobody leads a partition.
pub(super) const LEADER_NOT_AVAILABLE: i16 = 5;

/// What a code means for records that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Taken,
    /// At least one of the records is refused.
    Refused,
    /// Another broker leads the partition, or nobody does for a moment.
    Moved,
    /// They may be there.
    Doubtful,
    /// The producer has to introduce itself anew.
    Unknown,
    /// Another producer with the same transactional id has come.
    Fenced,
    /// The topic is not there, or not for this user.
    Topic,
    /// Nothing is taken now.
    Refusing,
}

/// The one place that decides what a code means.
pub(super) fn meaning(code: i16) -> Meaning {
    let Some(code) = Code::try_from_code(code) else {
        return Meaning::Taken;
    };
    match code {
        Code::DuplicateSequenceNumber => Meaning::Taken,
        Code::MessageTooLarge | Code::RecordListTooLarge | Code::InvalidRecord | Code::InvalidTimestamp => {
            Meaning::Refused
        }
        Code::NotLeaderOrFollower
        | Code::LeaderNotAvailable
        | Code::ReplicaNotAvailable
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::UnknownTopicId
        | Code::UnknownTopicOrPartition
        | Code::BrokerNotAvailable => Meaning::Moved,
        Code::RequestTimedOut | Code::NotEnoughReplicasAfterAppend | Code::NetworkException => Meaning::Doubtful,
        Code::UnknownProducerId | Code::OutOfOrderSequenceNumber | Code::InvalidProducerIdMapping => Meaning::Unknown,
        Code::InvalidProducerEpoch | Code::ProducerFenced => Meaning::Fenced,
        Code::TopicAuthorizationFailed | Code::InvalidTopicException => Meaning::Topic,
        _ => Meaning::Refusing,
    }
}

/// Whether who coordinates a transaction has to be asked again in a moment: a leader that changes, an earlier transaction that is
/// still being ended.
pub(super) fn is_passing(code: i16) -> bool {
    matches!(
        Code::try_from_code(code),
        Some(
            Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::ConcurrentTransactions
                | Code::RequestTimedOut
                | Code::NetworkException
        )
    )
}

/// Whether the coordinator is another broker now.
pub(super) fn is_other_coordinator(code: i16) -> bool {
    matches!(
        Code::try_from_code(code),
        Some(Code::CoordinatorNotAvailable | Code::NotCoordinator)
    )
}

/// A code as Kafka's documentation calls it.
pub(super) fn name(code: i16) -> String {
    let Some(known) = Code::try_from_code(code) else {
        return "NONE".into();
    };
    if let Code::Unknown(number) = known {
        return format!("error {number}");
    }
    // `TopicAuthorizationFailed` as TOPIC_AUTHORIZATION_FAILED.
    let mut name = String::new();
    for c in format!("{known:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// A sentence that names the code and says what to do about it. `what`: which topic or right it is about.
pub(super) fn sentence(code: i16, what: &str) -> String {
    let name = name(code);
    match advice(code) {
        Some(advice) => format!("{what}: {name}: {advice}"),
        None => format!("{what}: {name}"),
    }
}

fn advice(code: i16) -> Option<&'static str> {
    Some(match Code::try_from_code(code)? {
        Code::UnknownTopicOrPartition | Code::UnknownTopicId => {
            "there is no such topic, or none that this user may see: create it (kafka-topics.sh --create), see topic"
        }
        Code::InvalidTopicException => "that is no topic that can be written, see topic",
        Code::TopicAuthorizationFailed => {
            "the user may not write there: allow it (kafka-acls.sh --add --producer --topic), see setup"
        }
        Code::TransactionalIdAuthorizationFailed => {
            "the user may not use transactions under that name: allow Write and Describe on the transactional id, see setup"
        }
        Code::ClusterAuthorizationFailed => {
            "the user may not write as an idempotent producer: allow IdempotentWrite on the cluster, see setup"
        }
        Code::LeaderNotAvailable | Code::NotLeaderOrFollower | Code::BrokerNotAvailable | Code::ReplicaNotAvailable => {
            "the partition has no leader: do all brokers run?"
        }
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            "fewer replicas are in sync than min.insync.replicas demands: do all brokers run?"
        }
        Code::KafkaStorageError => "the broker's disk is full or broken: see its log",
        Code::RequestTimedOut => "the replicas did not confirm in time",
        Code::ThrottlingQuotaExceeded => "the user's quota is used up",
        Code::PolicyViolation => "a policy of the brokers forbids it: see their log",
        Code::MessageTooLarge | Code::RecordListTooLarge => "it is larger than the topic takes (max.message.bytes)",
        Code::InvalidRecord => "the topic takes no such record (a compacted one wants a key)",
        Code::InvalidTimestamp => "the topic does not take its time: is this machine's clock right?",
        Code::InvalidProducerEpoch | Code::ProducerFenced => {
            "another closehook writes with the same log and sink: only one may run"
        }
        Code::InvalidTransactionTimeout => {
            "the sink's timeout is longer than transaction.max.timeout.ms of the brokers: make it shorter"
        }
        Code::CoordinatorNotAvailable => "nobody coordinates transactions there: do all brokers run?",
        Code::ConcurrentTransactions => "an earlier transaction of this sink is still being ended",
        Code::UnsupportedForMessageFormat => "the topic's message format is too old: it has to be 0.11 or newer",
        Code::IllegalSaslState => "the listener wants no login: leave out sasl",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_called_as_in_kafkas_documentation() {
        for (code, called) in [
            (0, "NONE"),
            (3, "UNKNOWN_TOPIC_OR_PARTITION"),
            (6, "NOT_LEADER_OR_FOLLOWER"),
            (10, "MESSAGE_TOO_LARGE"),
            (29, "TOPIC_AUTHORIZATION_FAILED"),
            (45, "OUT_OF_ORDER_SEQUENCE_NUMBER"),
            (56, "KAFKA_STORAGE_ERROR"),
            (90, "PRODUCER_FENCED"),
            (999, "error 999"),
        ] {
            assert_eq!(name(code), called);
        }
    }

    #[test]
    fn what_is_wrong_with_the_system_is_no_fault_of_a_record() {
        for code in [-1, 19, 31, 35, 42, 44, 53, 56, 58, 89, 999] {
            assert_eq!(meaning(code), Meaning::Refusing, "{}", name(code));
        }
        for (code, means) in [
            (0, Meaning::Taken),
            (46, Meaning::Taken),
            (10, Meaning::Refused),
            (18, Meaning::Refused),
            (87, Meaning::Refused),
            (3, Meaning::Moved),
            (6, Meaning::Moved),
            (7, Meaning::Doubtful),
            (20, Meaning::Doubtful),
            (45, Meaning::Unknown),
            (59, Meaning::Unknown),
            (47, Meaning::Fenced),
            (90, Meaning::Fenced),
            (17, Meaning::Topic),
            (29, Meaning::Topic),
        ] {
            assert_eq!(meaning(code), means, "{}", name(code));
        }
    }
}
