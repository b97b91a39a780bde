//! The meter on a real broker.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use contract::ErrorCode;
use messaging::{BrokerSettings, Entry};
use nats_server::NatsServer;

use super::*;

pub(super) const NOON: u64 = 20_000 * DAY + DAY / 2;
/// For refunds.
pub(super) const ROOM: ByteSize = ByteSize::of(1 << 20);

pub(super) fn noon() -> u64 {
    NOON
}

pub(super) async fn broker(server: &NatsServer) -> Broker {
    let settings = BrokerSettings::new(server.url(), "10s".parse().unwrap());
    Broker::connect(&settings, "test").await.unwrap()
}

pub(super) async fn open(broker: &Broker) -> Meter {
    Meter::open(broker, noon, ROOM).await.unwrap()
}

/// A broker, and an orchestrator's meter on it.
pub(super) async fn place() -> (NatsServer, Meter) {
    let server = NatsServer::scratch().unwrap();
    let meter = open(&broker(&server).await).await;
    (server, meter)
}

/// The meters of two orchestrators on one broker.
pub(super) async fn place_of_two() -> (NatsServer, Meter, Meter) {
    let server = NatsServer::scratch().unwrap();
    let broker = broker(&server).await;
    let (one, two) = tokio::join!(open(&broker), open(&broker));
    (server, one, two)
}

/// Where the day of `account("acme", "prod")` is.
pub(super) fn record() -> String {
    name(&account("acme", "prod"), NOON / DAY)
}

pub(super) async fn stored(bucket: &Bucket<Day>) -> Entry<Day> {
    bucket.get(&record()).await.unwrap().unwrap()
}

/// Pictures of it that are used or set aside.
pub(super) async fn used(bucket: &Bucket<Day>) -> u64 {
    stored(bucket).await.value.used.images
}

pub(super) fn account(tenant: &str, policy: &str) -> Account {
    Account {
        tenant: tenant.parse().unwrap(),
        policy: policy.to_owned(),
    }
}

pub(super) fn images(images: u64) -> Use {
    Use {
        images,
        pixel_steps: images * 100,
    }
}

pub(super) fn limit(images: u64) -> DayLimit {
    DayLimit {
        images: NonZeroU64::new(images),
        pixel_steps: None,
    }
}

pub(super) async fn charge(
    meter: &Meter,
    account: &Account,
    most: u64,
    ask: u64,
) -> Result<(), Failure> {
    let charged = meter.charge(account, limit(most), images(ask)).await;
    charged.map(Charge::keep)
}

#[tokio::test]
async fn two_orchestrators_together_charge_a_day_to_the_last_picture_and_no_more() {
    let (server, one, two) = place_of_two().await;
    let acme = account("acme", "prod");
    let mut charged = 0;
    // Many at once, as a batch sends them.
    for _ in 0..8 {
        let ten = |meter| {
            let each = (0..40).map(|_| charge(meter, &acme, 600, 1));
            futures::future::join_all(each.collect::<Vec<_>>())
        };
        let (here, there) = tokio::join!(ten(&one), ten(&two));
        charged += here.iter().chain(&there).filter(|c| c.is_ok()).count();
    }
    assert!((598..=600).contains(&charged), "{charged}");
    // What one has set aside and does not use, the other gets.
    two.put_back(Duration::ZERO).await;
    while charge(&one, &acme, 600, 1).await.is_ok() {
        charged += 1;
    }
    assert_eq!(charged, 600);
    let refused = charge(&one, &acme, 600, 1).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    assert_eq!(refused.retry_after, Some(Duration::from_secs(DAY / 2)));
    assert!(refused.message.contains("images_per_day"), "{refused}");
    // Another policy of the tenant's, and another tenant, have days of their own.
    charge(&one, &account("acme", "test"), 600, 1)
        .await
        .unwrap();
    charge(&one, &account("bcme", "prod"), 600, 1)
        .await
        .unwrap();
    // Whoever starts now finds the day as it is.
    let three = open(&broker(&server).await).await;
    charge(&three, &acme, 600, 1).await.unwrap_err();
}

#[tokio::test]
async fn what_is_refused_later_is_not_charged_and_what_can_never_be_says_so() {
    let (_server, meter) = place().await;
    let acme = account("acme", "prod");
    for _ in 0..20 {
        let charged = meter.charge(&acme, limit(10), images(10)).await;
        drop(charged.unwrap());
    }
    charge(&meter, &acme, 10, 10).await.unwrap();
    let refused = charge(&meter, &acme, 10, 1).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    let never = charge(&meter, &acme, 10, 11).await.unwrap_err();
    assert_eq!(never.code, ErrorCode::InvalidArgument);
    assert_eq!(never.field.as_deref(), Some("images"));
    assert_eq!(
        never.message,
        "images must be at most 10, not 11: the policy of your key allows no more in a whole day (images_per_day)"
    );
}

#[tokio::test]
async fn a_day_begins_at_midnight() {
    static NOW: AtomicU64 = AtomicU64::new(NOON);
    fn clock() -> u64 {
        NOW.load(Ordering::Relaxed)
    }
    let server = NatsServer::scratch().unwrap();
    let meter = Meter::open(&broker(&server).await, clock, ROOM)
        .await
        .unwrap();
    let acme = account("acme", "prod");
    charge(&meter, &acme, 2, 2).await.unwrap();
    NOW.store(NOON + DAY / 2 - 1, Ordering::Relaxed);
    let refused = charge(&meter, &acme, 2, 1).await.unwrap_err();
    assert_eq!(refused.retry_after, Some(Duration::from_secs(1)));
    NOW.store(NOON + DAY / 2, Ordering::Relaxed);
    charge(&meter, &acme, 2, 2).await.unwrap();
    charge(&meter, &acme, 2, 1).await.unwrap_err();
}

#[tokio::test]
async fn accounts_that_are_not_used_are_put_back_and_forgotten() {
    let (_server, meter) = place().await;
    let acme = account("acme", "prod");
    charge(&meter, &acme, 100_000, 1).await.unwrap();
    assert!(used(&meter.bucket).await > 300, "some is set aside");
    meter.put_back(Duration::ZERO).await;
    assert_eq!(used(&meter.bucket).await, 1);
    assert!(meter.accounts().is_empty());
}

#[tokio::test]
async fn what_is_given_back_while_the_service_stops_is_put_back_too() {
    let (_server, meter) = place().await;
    let meter = Arc::new(meter);
    let service = Service::new("test");
    meter.clone().keep_up(&service);
    let acme = account("acme", "prod");
    charge(&meter, &acme, 100_000, 1).await.unwrap();
    let charged = meter
        .charge(&acme, limit(100_000), images(1))
        .await
        .unwrap();
    let bucket = meter.bucket.clone();
    let last_call = async {
        while used(&bucket).await > 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(charged);
        drop(meter);
    };
    let (stopped, ()) = tokio::join!(service.stop(Duration::from_secs(10)), last_call);
    assert!(stopped, "it waits for nobody who is gone");
    assert_eq!(used(&bucket).await, 1);
}

#[tokio::test]
async fn what_is_set_aside_for_an_account_that_is_in_use_stays() {
    let (_server, meter) = place().await;
    let acme = account("acme", "prod");
    charge(&meter, &acme, 100_000, 2).await.unwrap();
    let set_aside = used(&meter.bucket).await;
    meter.put_back(Duration::MAX).await;
    assert_eq!(used(&meter.bucket).await, set_aside);
}
