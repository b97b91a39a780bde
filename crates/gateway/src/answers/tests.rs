use std::net::IpAddr;

use axum::body::to_bytes;
use futures::FutureExt as _;
use http_body_util::BodyExt as _;

use super::*;
use crate::crowd::{Crowd, Member, Place};
use crate::unread::tests::{tenant, token, unread};

const LIMIT: Duration = Duration::from_secs(30);

async fn member() -> Member {
    let crowd = Arc::new(Crowd::new(1, 1));
    let address = IpAddr::from([127, 0, 0, 1]);
    let Some(Place::Room(room)) = crowd.place(address).await else {
        panic!("an empty house has room");
    };
    crowd.join(room, address).unwrap()
}

fn answer(body: Body, member: &Member, unread: &Arc<Unread>, whose: Whose) -> Answer {
    Answer::new(body, member.line.begin(), unread.clone(), whose, None)
}

/// The next piece of an answer.
async fn piece(answer: &mut Answer) -> Bytes {
    let frame = answer.frame().await.unwrap().unwrap();
    frame.into_data().unwrap()
}

#[tokio::test]
async fn bytes_count_as_unread_until_the_last_piece_of_them_is_gone() {
    let member = member().await;
    let (all, one) = (100_000_u64, PIECE as u64);
    let cases = [
        (tenant("a"), [1_u64, 0, 0]),
        (token("a"), [0, 1, 0]),
        (Whose::default(), [0, 0, 1]),
    ];
    for (whose, kind) in cases {
        let unread = unread();
        let body = Body::from(vec![7; all as usize]);
        let mut answer = answer(body, &member, &unread, whose);
        let bytes = piece(&mut answer).await;
        // The rest is in memory in one.
        assert_eq!(unread.waiting(), kind.map(|k| k * (all + one)));
        drop(answer);
        let slice = bytes.slice(5..6);
        drop(bytes);
        assert_eq!(unread.waiting(), kind.map(|k| k * one));
        assert!(member.line.owes());
        drop(slice);
        assert_eq!((unread.waiting(), member.line.owes()), ([0; 3], false));
        assert!(unread.knows_nobody());
    }
}

#[tokio::test]
async fn an_answer_is_the_same_in_pieces_as_in_one() {
    let (member, unread) = (member().await, unread());
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| i as u8).collect();
    let answer = answer(Body::from(bytes.clone()), &member, &unread, tenant("a"));
    assert_eq!(answer.size_hint().exact(), Some(100_000));
    let heard = to_bytes(Body::new(answer), 200_000).await.unwrap();
    assert!(heard == bytes);
    drop(heard);
    assert_eq!((unread.waiting(), member.line.owes()), ([0; 3], false));
    assert!(member.line.answers.all().is_empty());
}

#[tokio::test]
async fn small_answers_pass_as_they_are() {
    let (member, unread) = (member().await, unread());
    let answer = answer(Body::from("ok"), &member, &unread, tenant("a"));
    let bytes = to_bytes(Body::new(answer), 10).await.unwrap();
    assert_eq!((&bytes[..], unread.waiting()), (&b"ok"[..], [0; 3]));
}

#[tokio::test]
async fn an_answer_keeps_its_request_under_way_if_it_is_known_whom_it_is_for() {
    let (member, unread) = (member().await, unread());
    for (whose, keeps) in [
        (tenant("a"), true),
        (token("a"), true),
        (Whose::default(), false),
    ] {
        let answer = answer(Body::from("ok"), &member, &unread, whose);
        assert_eq!(!member.line.is_quiet(), keeps);
        drop(answer);
        assert!(member.line.is_quiet());
    }
}

#[tokio::test]
async fn an_answer_that_stands_still_is_given_up_while_another_of_its_connection_goes_on() {
    let (member, unread) = (member().await, unread());
    let body = || Body::from(vec![7; 100_000]);
    let mut stuck = answer(body(), &member, &unread, Whose::default());
    let mut read = answer(body(), &member, &unread, tenant("a"));
    let (kept, began) = (piece(&mut stuck).await, Instant::now());
    for look in 0..2 {
        drop(piece(&mut read).await);
        assert!(unread.waiting()[2] >= 100_000, "given up too soon");
        let answers = &member.line.answers;
        answers.give_up_stuck(LIMIT, began + LIMIT * look);
    }
    // The piece that the connection has counts for the connection alone.
    assert_eq!(unread.waiting(), [100_000, 0, 0]);
    assert_eq!(member.line.left.load(Ordering::Relaxed), PIECE as u64);
    assert!(stuck.frame().await.unwrap().is_err());
    assert!(stuck.frame().await.is_none());
    drop((kept, stuck));
    assert_eq!(member.line.left.load(Ordering::Relaxed), 0);
    assert_eq!(piece(&mut read).await.len(), PIECE);
    drop(read);
    assert_eq!((unread.waiting(), member.line.owes()), ([0; 3], false));
}

#[tokio::test]
async fn an_answer_that_was_never_asked_for_is_given_up_and_one_that_has_nothing_to_say_is_not() {
    let (member, unread) = (member().await, unread());
    let silent = Body::from_stream(futures::stream::pending::<Result<Bytes, axum::Error>>());
    let mut silent = answer(silent, &member, &unread, tenant("a"));
    let mut unasked = answer(Body::from("ok"), &member, &unread, tenant("b"));
    assert!(silent.frame().now_or_never().is_none());
    let began = Instant::now();
    for look in 0..2 {
        let answers = &member.line.answers;
        answers.give_up_stuck(LIMIT, began + LIMIT * look);
    }
    assert!(unasked.frame().await.unwrap().is_err());
    assert!(silent.frame().now_or_never().is_none());
}

#[tokio::test]
async fn a_connection_that_leaves_pieces_of_many_answers_is_not_borne() {
    let (member, unread) = (member().await, unread());
    let most = MOST_LEFT / PIECE as u64;
    let mut left = Vec::new();
    for count in 1..=most + 1 {
        let body = Body::from(vec![7; 100_000]);
        let mut stuck = answer(body, &member, &unread, Whose::default());
        left.push(piece(&mut stuck).await);
        let began = Instant::now();
        member.line.answers.give_up_stuck(LIMIT, began);
        member.line.answers.give_up_stuck(LIMIT, began + LIMIT);
        assert_eq!(member.line.leaves_too_much(), count > most);
    }
    left.pop();
    assert!(!member.line.leaves_too_much());
}
