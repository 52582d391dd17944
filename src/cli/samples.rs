//! Deliveries of Close's documentation.

/// Documented deliveries to send as samples.
pub(super) const SAMPLES: [&str; 15] = [
    include_str!("samples/activity.call.completed.json"),
    include_str!("samples/activity.meeting.scheduled.json"),
    include_str!("samples/activity.sms.created.json"),
    include_str!("samples/comment.created.json"),
    include_str!("samples/contact.updated.json"),
    include_str!("samples/custom_object.created.json"),
    include_str!("samples/lead.created.json"),
    include_str!("samples/lead.deleted.json"),
    include_str!("samples/lead.merged.json"),
    include_str!("samples/lead.updated.json"),
    include_str!("samples/membership.activated.json"),
    include_str!("samples/opportunity.updated.json"),
    include_str!("samples/sequence_subscription.updated.json"),
    include_str!("samples/unsubscribed_email.created.json"),
    include_str!("samples/unsubscribed_email.deleted.json"),
];
