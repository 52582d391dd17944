//! What the bucket must be, making it and looking at it.

use serde_json::{Value, json};

use super::JetStreamStore;
use super::key;

impl JetStreamStore {
    /// What the bucket's stream is made as.
    fn config(&self) -> Value {
        let options = &self.inner.options;
        json!({
            "name": format!("KV_{}", options.bucket), "subjects": [key::all_of(&options.bucket)], "storage": "file", "retention": "limits",
            "discard": "new", "max_msgs_per_subject": 1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msg_size": -1,
            "max_consumers": -1, "num_replicas": options.replicas, "allow_rollup_hdrs": true, "allow_direct": false,
            "duplicate_window": 120_000_000_000_u64, "description": "closehook",
        })
    }

    /// Makes the bucket where there is none, and says whether it has; one that is there stays as it is. An error is one sentence.
    pub async fn create(&self) -> Result<bool, String> {
        let until = self.until();
        if self.is_there(until).await? {
            return Ok(false);
        }
        let config = self.config();
        let made = self.api("STREAM.CREATE", &config, until).await;
        match made {
            Ok(_) => Ok(true),
            // Another node may have been faster.
            Err(_) if self.is_there(until).await? => Ok(false),
            Err(why) => Err(why),
        }
    }

    async fn is_there(&self, until: tokio::time::Instant) -> Result<bool, String> {
        loop {
            let trouble = match self.inner.api_answer("STREAM.INFO", &Value::Null, until).await {
                Ok(answer) => match answer.get("error") {
                    None => return Ok(true),
                    Some(error) if error["code"] == 404 => return Ok(false),
                    Some(error) => self.inner.trouble(error),
                },
                Err(trouble) => trouble,
            };
            super::pause(trouble, until).await?;
        }
    }

    /// What of the bucket weakens what is promised, a sentence each. An error: it can't be looked at, or is not there.
    pub async fn faults(&self) -> Result<Vec<String>, String> {
        let info = self.api("STREAM.INFO", &Value::Null, self.until()).await?;
        let (config, options) = (&info["config"], &self.inner.options);
        let bucket = &options.bucket;
        let mut faults = Vec::new();
        let mut must = |holds: bool, what: String| {
            if !holds {
                faults.push(format!("the bucket {bucket} {what}"));
            }
        };
        let number = |key: &str| config[key].as_i64().unwrap_or_default();
        let replicas = number("num_replicas");
        must(
            replicas >= options.replicas as i64,
            format!(
                "is on {replicas} server(s) and has to be on {}: nats stream edit KV_{bucket} --replicas {}",
                options.replicas, options.replicas
            ),
        );
        must(
            config["storage"] == "file",
            "is kept in memory: it has to be made anew with storage = file".into(),
        );
        must(
            config["retention"] == "limits" && config["sealed"] != true,
            "takes no changes as a key-value bucket does: it has to be made anew".into(),
        );
        must(
            number("max_msgs_per_subject") == 1,
            "keeps more than the newest value of a key (history): set it to 1".into(),
        );
        must(
            number("max_age") == 0,
            "forgets values after a while (ttl): set max_age to 0".into(),
        );
        must(
            number("max_msgs") <= 0 && (config["discard"] == "new" || number("max_bytes") <= 0),
            "drops old values for new ones at its limit: take the limit away".into(),
        );
        must(
            config["deny_purge"] != true,
            "lets nothing be removed (deny_purge)".into(),
        );
        must(
            config["mirror"].is_null() && config["sources"].is_null(),
            "is a copy of another: it has to be made anew".into(),
        );
        Ok(faults)
    }
}
