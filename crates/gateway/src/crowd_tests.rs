use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn join(crowd: &Arc<Crowd>, from: &str) -> Option<Member> {
    let room = room(crowd, from).await?;
    crowd.join(room, address(from))
}

/// At once or aside.
async fn room(crowd: &Arc<Crowd>, from: &str) -> Option<OwnedSemaphorePermit> {
    match crowd.place(address(from)).await? {
        Place::Room(room) => Some(room),
        Place::Aside(aside) => aside.room().await,
    }
}

async fn aside(crowd: &Arc<Crowd>, from: &str) -> Aside {
    match crowd.place(address(from)).await {
        Some(Place::Aside(aside)) => aside,
        Some(Place::Room(_)) => panic!("there is room"),
        None => panic!("too many wait"),
    }
}

fn leaving(inside: &[Member]) -> usize {
    let leaves = |member: &&Member| member.line.makes_way.is_cancelled();
    inside.iter().filter(leaves).count()
}

fn site(text: &str) -> Network {
    Network::of(address(text)).site()
}

#[tokio::test]
async fn one_address_has_its_share_and_gets_it_back() {
    let crowd = Arc::new(Crowd::new(10, 2));
    let first = join(&crowd, "10.0.0.1").await;
    let second = join(&crowd, "::ffff:10.0.0.1").await;
    assert!(first.is_some() && second.is_some());
    assert!(join(&crowd, "10.0.0.1").await.is_none());
    assert!(join(&crowd, "10.0.0.2").await.is_some());
    drop(first);
    assert!(join(&crowd, "10.0.0.1").await.is_some());
    drop(second);
    assert!(crowd.inside().addresses.len() <= 2 && crowd.inside().lines.is_empty());
}

#[test]
fn a_whole_network_of_ipv6_is_one_address() {
    let network = |text| Network::of(address(text));
    assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
    assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
    assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
}

#[tokio::test]
async fn in_a_full_house_the_longest_quiet_make_way_and_no_one_who_is_served() {
    let crowd = Arc::new(Crowd::new(3, 3));
    let served = join(&crowd, "10.0.0.1").await.unwrap();
    let _request = served.line.begin();
    let quiet = join(&crowd, "10.0.0.1").await.unwrap();
    let young = join(&crowd, "10.0.0.1").await.unwrap();
    young.line.quiet_since.store(9_500, Ordering::Relaxed);
    assert!(crowd.make_way(Duration::from_secs(10), site("10.0.0.2")));
    let leaves = |member: &Member| member.line.makes_way.is_cancelled();
    assert_eq!(
        [leaves(&served), leaves(&quiet), leaves(&young)],
        [false, true, false]
    );
    drop(quiet);
    assert!(join(&crowd, "10.0.0.2").await.is_some());
}

#[tokio::test]
async fn in_a_full_house_of_busy_ones_who_has_the_most_gives_one_up_to_who_has_fewer() {
    let crowd = Arc::new(Crowd::new(6, 4));
    let mut large = Vec::new();
    for _ in 0..4 {
        large.push(join(&crowd, "10.0.0.1").await.unwrap());
    }
    let small = [
        join(&crowd, "10.0.0.2").await.unwrap(),
        join(&crowd, "10.0.0.2").await.unwrap(),
    ];
    // All have asked a moment ago, and one is served.
    for (number, member) in large.iter().chain(&small).enumerate() {
        let since = 9_500 + number as u64;
        member.line.quiet_since.store(since, Ordering::Relaxed);
    }
    let _request = large[0].line.begin();
    let (now, newcomer) = (Duration::from_secs(10), site("10.0.0.3"));
    let leaving = || {
        let leaves = |member: &Member| member.line.makes_way.is_cancelled();
        large.iter().chain(&small).map(leaves).collect::<Vec<_>>()
    };
    // The one with four would have three then, and who has two would have them.
    assert!(crowd.make_way(now, site("10.0.0.2")));
    assert_eq!(leaving(), [false, true, false, false, false, false]);
    // Of three and two, the newcomer's is the first, down to as many as others have.
    assert!(!crowd.make_way(now, site("10.0.0.2")));
    assert!(crowd.make_way(now, newcomer));
    assert_eq!(leaving(), [false, true, true, false, false, false]);
    for _ in 0..2 {
        assert!(crowd.make_way(now, newcomer));
    }
    let stay = leaving().iter().filter(|leaves| !**leaves).count();
    assert_eq!(stay, 2, "one of each stays");
    assert!(!large[0].line.makes_way.is_cancelled(), "it is served");
    assert!(!crowd.make_way(now, newcomer));
}

#[tokio::test]
async fn whoever_wants_more_than_anyone_has_in_a_full_house_of_busy_ones_keeps_nobody_waiting() {
    let crowd = Arc::new(Crowd::new(4, 4));
    let mut inside = Vec::new();
    for from in ["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2"] {
        inside.push(join(&crowd, from).await.unwrap());
    }
    let requests: Vec<_> = inside.iter().map(|member| member.line.begin()).collect();
    // It waits where nobody is behind it, and not for ever.
    let began = Instant::now();
    let waits = aside(&crowd, "10.0.0.1").await;
    assert!(began.elapsed() < ASK_AGAIN);
    assert!(waits.room().await.is_none());
    assert!(began.elapsed() >= ASK_AGAIN);
    assert_eq!(leaving(&inside), 0);
    assert!(crowd.inside().aside.is_empty());
    // Whoever has none waits, for one that leaves when it has been served.
    let mut waits = pin!(room(&crowd, "10.0.0.3"));
    let early = tokio::time::timeout(Duration::from_millis(20), waits.as_mut()).await;
    assert!(early.is_err());
    assert_eq!(leaving(&inside), 1);
    drop(requests);
    inside.clear();
    assert!(waits.await.is_some());
}

#[tokio::test]
async fn whoever_has_some_waits_for_one_that_was_asked_to_leave_and_asks_no_other_at_once() {
    let crowd = Arc::new(Crowd::new(8, 6));
    let mut inside = Vec::new();
    for from in ["10.0.0.1"; 6].iter().chain(&["10.0.0.2"; 2]) {
        inside.push(join(&crowd, from).await.unwrap());
    }
    let requests: Vec<_> = inside.iter().map(|member| member.line.begin()).collect();
    let mut waits = pin!(aside(&crowd, "10.0.0.2").await.room());
    let early = tokio::time::timeout(ASK_AGAIN / 2, waits.as_mut()).await;
    assert!(early.is_err());
    assert_eq!(leaving(&inside), 1);
    // It takes longer than whoever may ask nobody is borne with.
    let early = tokio::time::timeout(ASK_AGAIN, waits.as_mut()).await;
    assert!(early.is_err());
    assert!(leaving(&inside) >= 2);
    drop(requests);
    inside.retain(|member| !member.line.makes_way.is_cancelled());
    assert!(waits.await.is_some());
}

#[tokio::test]
async fn few_of_a_site_wait_aside_and_others_find_places_there() {
    let crowd = Arc::new(Crowd::new(2, 2));
    let one = join(&crowd, "10.0.0.1").await.unwrap();
    let two = join(&crowd, "10.0.0.2").await.unwrap();
    let _requests = (one.line.begin(), two.line.begin());
    let mut waiting = Vec::new();
    for _ in 0..MOST_ASIDE_OF_A_SITE {
        waiting.push(aside(&crowd, "10.0.0.1").await);
    }
    assert!(crowd.place(address("10.0.0.1")).await.is_none());
    let _other = aside(&crowd, "10.0.0.2").await;
    waiting.pop();
    aside(&crowd, "10.0.0.1").await;
}

#[tokio::test]
async fn a_lone_busy_address_is_not_asked_to_leave_for_itself_and_its_newcomers_wait() {
    let crowd = Arc::new(Crowd::new(2, 3));
    let one = join(&crowd, "10.0.0.1").await.unwrap();
    let two = join(&crowd, "10.0.0.1").await.unwrap();
    let _requests = (one.line.begin(), two.line.begin());
    let mut waits = pin!(room(&crowd, "10.0.0.1"));
    let early = tokio::time::timeout(Duration::from_millis(20), waits.as_mut()).await;
    assert!(early.is_err());
    assert!(!one.line.makes_way.is_cancelled() && !two.line.makes_way.is_cancelled());
    drop(one);
    assert!(waits.await.is_some());
}

#[tokio::test]
async fn the_networks_of_one_site_have_a_share_together_and_give_way_as_one() {
    let crowd = Arc::new(Crowd::new(5, 2));
    let mut inside = Vec::new();
    for network in 0..4 {
        let from = format!("2001:db8:1:{network}::1");
        inside.push(join(&crowd, &from).await.unwrap());
    }
    assert!(!crowd.may_join(address("2001:db8:1:9::1")));
    assert!(join(&crowd, "2001:db8:1:9::1").await.is_none());
    let _other = join(&crowd, "2001:db8:2::1").await.unwrap();
    let now = Duration::from_millis(10);
    assert!(crowd.make_way(now, site("2001:db8:3::1")));
    let leaving = inside.iter().filter(|m| m.line.makes_way.is_cancelled());
    assert_eq!(leaving.count(), 1);
    inside.clear();
    assert_eq!(crowd.inside().sites.len(), 1);
}

#[tokio::test]
async fn whoever_has_its_share_is_turned_away_from_a_full_house_before_anyone_makes_way() {
    let crowd = Arc::new(Crowd::new(2, 1));
    let one = join(&crowd, "10.0.0.1").await.unwrap();
    let two = join(&crowd, "10.0.0.2").await.unwrap();
    assert!(!crowd.may_join(address("10.0.0.1")));
    assert!(crowd.may_join(address("10.0.0.3")));
    assert!(!one.line.makes_way.is_cancelled() && !two.line.makes_way.is_cancelled());
    drop(one);
    assert!(crowd.may_join(address("10.0.0.1")));
}

#[tokio::test]
async fn a_connection_is_quiet_from_the_end_of_its_last_request() {
    let crowd = Arc::new(Crowd::new(3, 3));
    let member = join(&crowd, "10.0.0.1").await.unwrap();
    member.line.quiet_since.store(7_000, Ordering::Relaxed);
    let later = Duration::from_secs(10);
    assert_eq!(member.line.quiet_for(later), Some(Duration::from_secs(3)));
    let (one, two) = (member.line.begin(), member.line.begin());
    drop(one);
    assert_eq!(member.line.quiet_for(later), None);
    drop(two);
    let quiet = member.line.quiet_for(later).unwrap();
    assert!(quiet > Duration::from_secs(3), "{quiet:?}");
    assert_eq!(member.line.asked(), 2);
}
