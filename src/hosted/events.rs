//! Who is told of pushes, deletions and first pulls: `CloudEvents`, posted in order to each who wants
//! them, tried again for a while. What waits is bounded, and nobody waits for it.

#![expect(clippy::disallowed_methods, reason = "a token's file is read on a blocking thread")]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use ring::rand::SecureRandom;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::config::EventSink;
use crate::digest::Digest;
use crate::name::{Repository, Tag};

/// Events that wait for one who wants them; more are dropped, and that is said.
const WAITING_MAX: usize = 1000;

/// How often an event is tried, the pause doubling from one second on: for a quarter of an hour.
const TRIES_MAX: u32 = 10;

/// How long one try may take.
const TRY_WITHIN: Duration = Duration::from_secs(15);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A manifest was pushed.
    Push,
    /// A tag or a manifest was deleted.
    Delete,
    /// A manifest was pulled for the first time since it was pushed.
    FirstPull,
}

impl Happening {
    /// The word in an event's type.
    fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Delete => "delete",
            Self::FirstPull => "first-pull",
        }
    }
}

/// Tells those who want to know.
#[derive(Debug, Default)]
pub struct Events {
    queues: ArcSwap<Vec<Queue>>,
    /// Taken by whoever delivers.
    sinks: Mutex<Vec<(EventSink, mpsc::Receiver<Value>)>>,
    changed: Notify,
}

/// Where what happens waits for one who wants to know.
#[derive(Clone, Debug)]
struct Queue {
    sink: EventSink,
    events: mpsc::Sender<Value>,
}

impl Events {
    /// Queues for those who want to know.
    pub fn new(sinks: &[EventSink]) -> Self {
        let events = Self::default();
        events.set_sinks(sinks);
        events
    }

    /// Tells these from now on. What waits for others, and for those who stay, is still delivered.
    pub fn set_sinks(&self, sinks: &[EventSink]) {
        let known = self.queues.load();
        let mut queues = Vec::new();
        for sink in sinks {
            if let Some(queue) = known.iter().find(|queue| queue.sink == *sink) {
                queues.push(queue.clone());
                continue;
            }
            let (events, inbox) = mpsc::channel(WAITING_MAX);
            queues.push(Queue { sink: sink.clone(), events });
            self.sinks.lock().push((sink.clone(), inbox));
        }
        self.queues.store(Arc::new(queues));
        self.changed.notify_one();
    }

    /// Whether anybody wants to know.
    pub fn are_wanted(&self) -> bool {
        !self.queues.load().is_empty()
    }

    /// Tells what happened. Never waits.
    pub fn tell(
        &self,
        what: Happening,
        repository: &Repository,
        tag: Option<&Tag>,
        digest: Option<&Digest>,
    ) {
        if !self.are_wanted() {
            return;
        }
        let event = event(what, repository, tag, digest);
        for queue in self.queues.load().iter() {
            if queue.events.try_send(event.clone()).is_err() {
                tracing::warn!(%repository, what = what.as_str(), "an event is dropped: too many wait");
            }
        }
    }

    /// Delivers, for ever.
    pub async fn deliver(&self) {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TRY_WITHIN)
            .build();
        let client = match client {
            Ok(client) => client,
            Err(error) => return tracing::error!(%error, "no events can be delivered"),
        };
        let mut deliveries = JoinSet::new();
        loop {
            for (sink, mut inbox) in std::mem::take(&mut *self.sinks.lock()) {
                let client = client.clone();
                deliveries.spawn(async move {
                    while let Some(event) = inbox.recv().await {
                        deliver(&client, &sink, &event).await;
                    }
                });
            }
            self.changed.notified().await;
            while deliveries.try_join_next().is_some() {} // those who are told no more
        }
    }
}

fn event(
    what: Happening,
    repository: &Repository,
    tag: Option<&Tag>,
    digest: Option<&Digest>,
) -> Value {
    let mut id = [0; 16];
    let _ = ring::rand::SystemRandom::new().fill(&mut id); // an id of zeros is still an id
    let subject = match (tag, digest) {
        (Some(tag), _) => format!("{repository}:{tag}"),
        (None, Some(digest)) => format!("{repository}@{digest}"),
        (None, None) => repository.to_string(),
    };
    let time = jiff::Timestamp::try_from(SystemTime::now()).map(|t| t.to_string());
    json!({
        "specversion": "1.0",
        "id": format!("{:032x}", u128::from_be_bytes(id)),
        "source": "/pierhead",
        "type": format!("io.pierhead.{}", what.as_str()),
        "subject": subject,
        "time": time.unwrap_or_default(),
        "datacontenttype": "application/json",
        "data": {
            "repository": repository.as_str(),
            "tag": tag.map(Tag::as_str),
            "digest": digest,
        },
    })
}

async fn deliver(client: &reqwest::Client, sink: &EventSink, event: &Value) {
    for round in 0..TRIES_MAX {
        match post(client, sink, event).await {
            Ok(()) => return,
            Err(why) => {
                tracing::warn!(url = sink.url, event = %event["id"], why, round, "an event was not taken");
            }
        }
        if round + 1 < TRIES_MAX {
            tokio::time::sleep(Duration::from_secs(1 << round)).await;
        }
    }
    tracing::error!(url = sink.url, event = %event["id"], "an event is given up");
}

async fn post(client: &reqwest::Client, sink: &EventSink, event: &Value) -> Result<(), String> {
    let mut request = client
        .post(&sink.url)
        .header("content-type", "application/cloudevents+json; charset=utf-8")
        .body(event.to_string());
    if let Some(file) = sink.token_file.clone() {
        let read = tokio::task::spawn_blocking(move || fs::read_to_string(file)).await;
        let token = read.map_err(|e| e.to_string())?.map_err(|e| format!("its token_file: {e}"))?;
        request = request.bearer_auth(token.trim_end());
    }
    let status = request.send().await.map_err(|e| e.without_url().to_string())?.status();
    if status.is_success() { Ok(()) } else { Err(status.to_string()) }
}
