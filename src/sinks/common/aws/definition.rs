//! The keys that all sinks for AWS have, said once.

/// The keys of a sink for AWS: its own, then those that all have.
macro_rules! keys_with_access {
    ($($own:expr),* $(,)?) => {
        &[
            $($own,)*
            $crate::config::Key::optional(
                "region",
                "\"eu-central-1\"",
                "Where it is; default: what an ARN or URL says, then `AWS_REGION`, then the profile",
            ),
            $crate::config::Key::optional(
                "endpoint",
                "\"https://minio.example.com:9000\"",
                "Another server than AWS's own, which may have a private address",
            ),
            $crate::config::Key::optional("access_key_id", "\"AKIAIOSFODNN7EXAMPLE\"", "Who signs"),
            $crate::config::Key::optional("secret_access_key", "\"credential:aws\"", "With what").secret(),
            $crate::config::Key::optional("session_token", "\"credential:aws-token\"", "Of keys that are lent").secret(),
            $crate::config::Key::optional(
                "profile",
                "\"crm\"",
                "Instead of keys: a profile of ~/.aws/config and ~/.aws/credentials of the daemon's user",
            ),
            $crate::config::Key::optional(
                "role_arn",
                "\"arn:aws:iam::123456789012:role/closehook\"",
                "A role that is taken on with what was found",
            ),
            $crate::config::Key::optional("proxy", "\"http://proxy.example.com:3128\"", "An HTTP proxy on the way"),
            $crate::config::Key::optional("ca", "\"/etc/closehook/internal-ca.pem\"", "Trusted besides the system's"),
            $crate::config::Key::optional("cert", "\"/etc/closehook/client.pem\"", "A client's certificate with its chain"),
            $crate::config::Key::optional("key", "\"/etc/closehook/client.key\"", "Its key, not encrypted"),
        ]
    };
}

/// `batch`, with its defaults.
macro_rules! batch_key {
    ($events:literal, $bytes:literal, $wait:literal, $about:literal) => {
        $crate::config::Key::table(
            "batch",
            &[
                $crate::config::Key::with_default("events", $events, "Events at the most"),
                $crate::config::Key::with_default("bytes", $bytes, "Bytes of bodies at the most, roughly"),
                $crate::config::Key::with_default("wait", $wait, "How long one that is not full waits for more"),
            ],
            $about,
        )
    };
}

/// Who signs is found so; for each type's notes.
macro_rules! about_access {
    () => {
        "Credentials are found as AWS's tools find them: keys or a profile in the sink; `AWS_ACCESS_KEY_ID` and its like; a web identity \
(EKS); ~/.aws/credentials and ~/.aws/config; the role of the container (ECS, EKS Pod Identity) or of the EC2 instance (IMDSv2). They \
are fetched again before they end. Programs (credential_process) are not run, and SSO is not used. Credentials that are refused, a right \
or a resource that is missing, a clock that is wrong, throttling and 5xx are the sink's trouble: no event's attempt is counted."
    };
}

pub(in crate::sinks) use {about_access, batch_key, keys_with_access};
