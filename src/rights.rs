//! Who may read what of an upstream that is asked with its callers' own credentials.
//!
//! A right belongs to a caller and a repository of the upstream, and is proven by the upstream: the
//! caller's credentials open the very thing that is asked for. What is held plays no part in the
//! proof, so neither status nor time tell what is. Yes and no are remembered briefly, under a keyed
//! hash of the credentials, which themselves are kept nowhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use ring::hmac;

use crate::config::Passthrough;
use crate::error::{Error, Kind, Result};
use crate::flight::Flights;
use crate::name::{Reference, Repository};
use crate::pass::Login;
use crate::route::Action;
use crate::store::Place;
use crate::upstream::ask::Ask;
use crate::upstream::{Patience, Upstream, Who};

/// Decisions remembered; the oldest go first.
const DECISIONS_MAX: u64 = 100_000;

/// How long a repository may go on as public while the upstream cannot say.
const PUBLIC_AT_MOST: Duration = Duration::from_secs(3600);

/// Who asks an upstream.
#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// Somebody with credentials for this upstream.
    Known(&'a Login),
    /// Somebody without, who may not even know that credentials would be taken.
    Unasked,
    /// Somebody who was asked for credentials and has none.
    Nobody,
}

/// What the upstream said, and when.
#[derive(Clone, Copy, Debug)]
struct Said {
    yes: bool,
    at: Instant,
    /// For how long that is believed, with jitter so that many do not end as one.
    for_long: Duration,
}

impl Said {
    fn holds(self) -> bool {
        self.at.elapsed() < self.for_long
    }
}

type Proof = (Who, Place, String);

/// The rights at one upstream.
#[derive(Debug)]
pub struct Rights {
    settings: Passthrough,
    key: hmac::Key,
    /// By whose they are; nobody's say what is public.
    said: moka::sync::Cache<(Who, Place), Said>,
    proofs: Flights<Proof, Result<()>>,
}

impl Rights {
    /// None known.
    pub fn new(settings: Passthrough, key: hmac::Key) -> Self {
        let longest = settings.allow_ttl.get() + settings.stale_for.get();
        let said = moka::sync::Cache::builder()
            .max_capacity(DECISIONS_MAX)
            .time_to_live(longest.max(PUBLIC_AT_MOST))
            .build();
        Self { settings, key, said, proofs: Flights::new() }
    }

    /// Decides whether an asker may have this, and by whose credentials it is fetched if need be. One
    /// who is about to push asks with credentials for that.
    ///
    /// # Errors
    /// `Unauthorized` where credentials may help; `Denied` where these do not; the upstream's
    /// absence; an outage where nothing is known of the right.
    pub async fn admit(
        &self,
        upstream: &Arc<Upstream>,
        place: &Place,
        (asker, pushes): (Asker<'_>, bool),
        action: &Action,
    ) -> Result<Arc<Upstream>> {
        let (view, who) = match asker {
            Asker::Known(login) => self.view(upstream, place, login, pushes)?,
            Asker::Unasked | Asker::Nobody => (Arc::clone(upstream), None),
        };
        let public = self.said.get(&(None, place.clone())).filter(|said| said.yes && said.holds());
        if public.is_some() {
            return Ok(view);
        }
        let outcome = self.decide(&view, who, place, action).await;
        outcome.map(|()| view).map_err(|error| told(place, asker, error))
    }

    /// The upstream as it is pushed to for an asker: it judges each request itself.
    ///
    /// # Errors
    /// Never in practice.
    pub fn pusher(
        &self,
        upstream: &Arc<Upstream>,
        place: &Place,
        asker: Asker<'_>,
    ) -> Result<Arc<Upstream>> {
        match asker {
            Asker::Known(login) => self.view(upstream, place, login, true).map(|(view, _)| view),
            Asker::Unasked | Asker::Nobody => Ok(Arc::clone(upstream)),
        }
    }

    /// Whether credentials are any good, for those who want to be told at `docker login`.
    ///
    /// # Errors
    /// `Unauthorized` where the upstream refuses them, an outage where it cannot say.
    pub async fn check(&self, upstream: &Arc<Upstream>, login: &Login) -> Result<()> {
        // No repository is asked about; the name is only for messages.
        let place = Place { upstream: Arc::clone(upstream.name()), repository: somewhere()? };
        let (view, who) = self.view(upstream, &place, login, false)?;
        let key = (who, place.clone());
        if let Some(said) = self.said.get(&key).filter(|said| said.holds()) {
            return if said.yes { Ok(()) } else { Err(wrong(&place)) };
        }
        let answered = view.ask(&Ask::ping(&place.repository), Patience::Brief).await;
        match answered {
            Ok(_) => {
                self.note(key, true, self.settings.allow_ttl.get());
                Ok(())
            }
            Err(e) if e.kind() == Kind::Denied => {
                self.note(key, false, self.settings.deny_ttl.get());
                Err(wrong(&place).because(e))
            }
            Err(e) => Err(e),
        }
    }

    async fn decide(
        &self,
        view: &Arc<Upstream>,
        who: Who,
        place: &Place,
        action: &Action,
    ) -> Result<()> {
        let key = (who, place.clone());
        let before = self.said.get(&key);
        match before {
            Some(said) if said.holds() && said.yes => return Ok(()),
            Some(said) if said.holds() => {
                return Err(Error::new(Kind::Denied, "denied a moment ago"));
            }
            _ => {}
        }
        let Some(ask) = proof(&place.repository, action) else {
            return Ok(()); // asked of the upstream itself, each time, with these credentials
        };
        let outcome = self.prove(view, who, place, ask).await;
        let deny = self.settings.deny_ttl.get();
        match outcome {
            Ok(()) if who.is_none() => self.note(key, true, self.settings.public_ttl.get()),
            Ok(()) => self.note(key, true, self.settings.allow_ttl.get()),
            Err(e) if e.kind() == Kind::Denied => {
                self.note(key, false, deny);
                return Err(e);
            }
            Err(e) if e.is_outage() => {
                let (life, more) = match who {
                    None => (Duration::ZERO, PUBLIC_AT_MOST),
                    Some(_) => (self.settings.allow_ttl.get(), self.settings.stale_for.get()),
                };
                let extended =
                    before.is_some_and(|said| said.yes && said.at.elapsed() < life + more);
                // The configuration says how long private rights may be extended; none arise here.
                if !extended || (who.is_some() && more.is_zero()) {
                    return Err(e);
                }
                tracing::warn!(?place, error = ?e, "a right is extended while the upstream is down");
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Asks the upstream, once for any number of the same caller's requests for the same thing.
    async fn prove(&self, view: &Arc<Upstream>, who: Who, place: &Place, ask: Ask) -> Result<()> {
        let key = (who, place.clone(), ask.path.clone());
        let view = Arc::clone(view);
        let work = || async move {
            match view.ask(&ask, Patience::Brief).await {
                // No HEAD there: the bytes tell as well.
                Err(e) if e.kind() == Kind::BadUpstream && ask.method == Method::HEAD => {
                    let ask = Ask { method: Method::GET, ..ask };
                    view.ask(&ask, Patience::Brief).await.map(drop)
                }
                other => other.map(drop),
            }
        };
        let (outcome, _) = self.proofs.run(key, work).await;
        outcome.unwrap_or_else(|| Err(Error::new(Kind::Internal, "a proof was dropped")))
    }

    fn note(&self, key: (Who, Place), yes: bool, life: Duration) {
        let mut byte = [0];
        // Without randomness the lives are merely equal.
        let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut byte);
        let for_long = life.mul_f64(1.0 - f64::from(byte[0]) / 1024.0);
        self.said.insert(key, Said { yes, at: Instant::now(), for_long });
    }

    fn view(
        &self,
        upstream: &Arc<Upstream>,
        place: &Place,
        login: &Login,
        pushes: bool,
    ) -> Result<(Arc<Upstream>, Who)> {
        let who = self.name(place, login, pushes);
        let view = upstream.as_caller(&login.username, &login.password, who, pushes)?;
        Ok((view, Some(who)))
    }

    /// The credentials' name here: a keyed hash of every byte of them. Who is about to push is shown
    /// more, so that is told apart.
    fn name(&self, place: &Place, login: &Login, pushes: bool) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        let how = if pushes { "basic, to push" } else { "basic" };
        for part in [&*place.upstream, how, &login.username, &login.password] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut name = [0; 32];
        name.copy_from_slice(context.sign().as_ref());
        name
    }
}

/// What an asker is told of the upstream's no.
pub fn told(place: &Place, asker: Asker<'_>, error: Error) -> Error {
    match asker {
        // Until credentials were asked for, "not there" may mean "not for you".
        Asker::Unasked if error.is_absence() || error.kind() == Kind::Denied => unauthorized(place),
        Asker::Nobody if error.kind() == Kind::Denied => unauthorized(place),
        Asker::Known(_) if error.kind() == Kind::Denied => Error::new(
            Kind::Denied,
            format!(
                "{} does not open {} to these credentials; it does not exist, or log in as somebody who may read it",
                place.upstream, place.repository
            ),
        )
        .because(error),
        _ => error,
    }
}

/// What proves the right to something: that very thing. `None` where the upstream is asked for it
/// each time anyway.
fn proof(repository: &Repository, action: &Action) -> Option<Ask> {
    match action {
        Action::Manifest(reference) => Some(Ask::manifest(Method::HEAD, repository, reference)),
        Action::Blob(digest) => Some(Ask::blob_proof(repository, digest)),
        Action::Ping
        | Action::Tags(_)
        | Action::Referrers(..)
        | Action::Catalog(..)
        | Action::Push(_) => None,
    }
}

/// The same, for a tag that is looked up on the way to something else.
pub fn by_tag(reference: &Reference) -> Action {
    Action::Manifest(reference.clone())
}

fn somewhere() -> Result<Repository> {
    Repository::parse("log-in")
}

fn unauthorized(place: &Place) -> Error {
    Error::new(
        Kind::Unauthorized,
        format!("log in to read {} of {}: it is not public", place.repository, place.upstream),
    )
}

fn wrong(place: &Place) -> Error {
    Error::new(
        Kind::Unauthorized,
        format!("{} refuses this user name and password", place.upstream),
    )
}
