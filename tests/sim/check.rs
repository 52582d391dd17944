//! What must hold in the end, whatever happened.

use std::time::Duration;

use closehook::deliver::EventState;
use closehook::event::{Kind, Origin, Seq};
use closehook::log::{Log, Take};
use closehook::sinks::Commit;

use super::case::{Case, Known, Life, SINKS};

/// Longest wait until everything that can be delivered is.
const PATIENCE: Duration = Duration::from_secs(40);

/// Ends every fault and waits until nothing is left to do.
pub fn settle(case: &Case, life: &Life) -> Result<(), String> {
    life.heal(case);
    let idle = async {
        for (name, _, _) in SINKS {
            // A worker that could not read its state rests for a moment, and takes no order.
            let resumed = async {
                while life.engine.pause(name, false).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let resumed = tokio::time::timeout(PATIENCE, resumed).await;
            resumed.map_err(|_| format!("{name} can't be resumed"))?;
        }
        tokio::time::timeout(PATIENCE, life.is_idle()).await.map_err(|_| {
            format!(
                "I4: nothing fails any more, and not all is delivered: {:?}",
                life.engine.sinks()
            )
        })
    };
    life.block_on(idle)
}

/// Every invariant that can be seen from outside.
pub async fn all(case: &mut Case, life: &Life) -> Result<(), String> {
    log(case, life).await?;
    for (index, (name, commit, _)) in SINKS.iter().enumerate() {
        sink(case, life, index, name, *commit).await?;
    }
    Ok(())
}

/// I1, I3: what was answered is there, in order, unless it was let go. What was stored right before a kill was answered to nobody
/// and may be there as well; from now on it counts like the others.
async fn log(case: &mut Case, life: &Life) -> Result<(), String> {
    let first = life.log.first();
    let mut next = first;
    let mut found = Vec::new();
    loop {
        let take = Take {
            events: 64,
            bytes: 1 << 20,
            narrow: None,
        };
        let batch = life.log.read(next, take).await.map_err(|error| error.to_string())?;
        if !batch.lost.is_empty() {
            return Err(format!("I1: {:?} can't be read any more", batch.lost));
        }
        if batch.next == next {
            break;
        }
        for event in &batch.events {
            found.push(event.seq);
            if event.kind == Kind::Erased || case.events.contains_key(&event.seq) {
                continue;
            }
            let known = Known {
                lead: 0,
                even: event.view().and_then(|view| view.action.as_deref()) == Some("even"),
                erased: false,
            };
            case.events.insert(event.seq, known);
        }
        next = batch.next;
    }
    let expected: Vec<Seq> = case.events.range(first..).map(|(seq, _)| *seq).collect();
    let in_order = found.windows(2).all(|pair| pair[0].next() == pair[1]);
    if !in_order || !expected.iter().all(|seq| found.binary_search(seq).is_ok()) {
        return Err(format!(
            "I1, I3: from {first} on the log holds {found:?} instead of {expected:?}"
        ));
    }
    Ok(())
}

async fn sink(case: &Case, life: &Life, index: usize, name: &str, commit: Commit) -> Result<(), String> {
    // One call may have been on its way when the checkpoint became due.
    let late = case.world.at(name, |receiver| receiver.latest);
    if commit == Commit::Checkpoint && late > 1 {
        return Err(format!(
            "I6: {name} was given {late} batches while a checkpoint was due"
        ));
    }
    let letters = life.engine.dead_list(Some(name), Seq(1), 100_000);
    let letters = letters.map_err(|error| error.to_string())?;
    for (seq, known) in &case.events {
        let wanted = name != "check" || known.even;
        let rows = |test: &dyn Fn(&Origin) -> bool| {
            case.world.at(name, |receiver| {
                let rows = receiver.rows.iter().filter(|row| row.seq == *seq && test(&row.origin));
                (rows.clone().count(), rows.filter(|row| row.torn).count())
            })
        };
        let (delivered, torn) = rows(&|origin| *origin == Origin::Live || *origin == Origin::Letter);
        let dead = letters.iter().filter(|letter| letter.seq == *seq).count();
        let place = format!("event {seq} at {name}: {delivered} deliveries, {dead} letters");
        if torn > 0 {
            return Err(format!("A1: {place}, of which {torn} never reached the disk"));
        }
        let replays = case
            .replays
            .iter()
            .filter(|(_, sink, from, to)| *sink == index && (from..=to).contains(&seq));
        let ends = Ends {
            live: rows(&|origin| *origin == Origin::Live).0,
            delivered,
            dead,
            replayed: rows(&|origin| matches!(origin, Origin::Replay(_))).0,
            replays: replays.count(),
        };
        judge(wanted, known, commit, &ends).map_err(|why| format!("I4: {place}: {why}"))?;
        state(life, *seq, name, wanted, &ends).await?;
        for (id, _, _, _) in case.replays.iter().filter(|(_, sink, _, _)| *sink == index) {
            let (again, _) = rows(&|origin| matches!(origin, Origin::Replay(replay) if **replay == **id));
            if again > 1 && commit != Commit::Acknowledge {
                return Err(format!("{place}: replay {id} has delivered it {again} times"));
            }
        }
    }
    Ok(())
}

/// What became of one event at one sink.
struct Ends {
    /// Deliveries as a new event.
    live: usize,
    /// Deliveries by replays.
    replayed: usize,
    /// Those, and the ones as a letter.
    delivered: usize,
    dead: usize,
    /// Replays that it was in. Whatever it was before, each may make a dead letter of it, and that may be delivered later.
    replays: usize,
}

fn judge(wanted: bool, known: &Known, commit: Commit, ends: &Ends) -> Result<(), &'static str> {
    let exact = commit != Commit::Acknowledge;
    match (ends.delivered, ends.dead) {
        (0, 0) if !wanted && ends.replays == 0 => Ok(()),
        _ if !wanted && ends.replays == 0 => Err("no rule sends it there"),
        (0, 0) if known.erased || !wanted => Ok(()),
        (0, 0) => Err("it is neither delivered nor dead"),
        (_, 2..) => Err("one letter is enough"),
        (many, _) if exact && (ends.live > 1 || many > 1 + ends.replays) => Err("exactly once was promised"),
        (1.., 1) if exact && ends.replays == 0 => Err("it is delivered and dead"),
        _ => Ok(()),
    }
}

/// What is said of an event is so.
async fn state(life: &Life, seq: Seq, sink: &str, wanted: bool, ends: &Ends) -> Result<(), String> {
    let Ends { delivered, dead, .. } = *ends;
    let Some(event) = life.log.get(seq).await.map_err(|error| error.to_string())? else {
        return Ok(());
    };
    let said = async {
        loop {
            match life.engine.event_states(&event).await.remove(sink) {
                // It was delivered a moment ago, and is secured with the next checkpoint.
                Some(EventState::InFlight) => tokio::time::sleep(Duration::from_millis(3)).await,
                state => return state,
            }
        }
    };
    let said = tokio::time::timeout(PATIENCE, said).await;
    let said = said.map_err(|_| format!("event {seq} is said to be in flight at {sink} for ever"))?;
    let state = said.ok_or_else(|| format!("nothing is said of {sink}"))?;
    let is_true = match &state {
        EventState::Delivered => delivered > 0 || ends.replayed > 0,
        EventState::Dead { .. } => dead > 0,
        // A replay may have sent it there all the same.
        EventState::NotRouted => !wanted && dead == 0,
        EventState::Erased => true,
        _ => false,
    };
    if is_true {
        Ok(())
    } else {
        Err(format!(
            "event {seq} is said to be {state:?} at {sink}, with {delivered} deliveries and {dead} letters"
        ))
    }
}
