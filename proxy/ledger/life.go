// How a channel ends: one transition for each side and every cause.

package ledger

// Cause is what ends a channel, or goes on with its end.
type Cause uint8

// The causes. "Quiet" closes are answered by the proxy at once; for the others the answer
// is the broker's.
const (
	ByClientQuiet     Cause = iota // the client's channel.close
	ByClient                       // likewise, with something under way
	ByConnectionQuiet              // the client's connection.close
	ByConnection                   // likewise, with something under way
	ByCrash                        // the client is gone, or its connection is being closed
	ByMove                         // the channel moves to another upstream
	ByProxy                        // a soft error of the proxy's own
	ByBroker                       // the broker's channel.close
	ByAnswer                       // the broker's channel.close-ok
	ByOverdue                      // the broker has not answered within close_timeout
	ByClientOk                     // the client's channel.close-ok
	ByUpstream                     // the upstream has ended
	ByKeep                         // quiet, and the seat may serve another once what it did is proven
	ByProven                       // nothing of what was done on the seat can fail any more
	numCauses
)

// State is a channel as its client sees it.
type State uint32

const (
	Open    State = iota // open-ok was sent
	Closing              // the client asked to close and waits for close-ok
	Refused              // the broker closed it; until the client's close-ok its number may not be opened again
	Owing                // likewise, and the client has had its own close answered
	Closed               // its number may be opened again
)

// Seat is a channel of an upstream as the broker sees it.
type Seat uint8

const (
	SeatOpen    Seat = iota // open was sent, perhaps not yet answered
	SeatClosing             // close was sent, close-ok not received
	SeatCrossed             // as closing, and the broker's own close was answered
	SeatProving             // its client has left it, the answer to a barrier is due
	SeatKept                // it is open and belongs to nobody
	SeatFree                // close-ok was received or sent: the id may be used again
)

// Waits reports whether an answer of the broker is due that ends the client's use of the seat.
func (s Seat) Waits() bool { return s == SeatClosing || s == SeatCrossed || s == SeatProving }

// Act is what has to be done in the same step as a transition.
type Act uint16

const (
	SayClose   Act = 1 << iota // channel.close: to the client the broker's, to the broker our own
	SayCloseOk                 // channel.close-ok, behind close where both are said
	Uncount                    // the client has one channel less
	Wake                       // the reader that waits for this client's closes looks again
	Silent                     // nobody waits for the broker's answer
	Ticket                     // later readers wait for this close
	Through                    // they wait no longer
	Free                       // the id may be used again, and its place is given back
	Lose                       // the id is never used again, its place is given back
	SayBarrier                 // a method whose answer comes when all before it has been taken
	Keep                       // the seat is put aside, its place is given back
	Tell                       // the client hears of it
)

// Has reports whether all of the acts are among these.
func (a Act) Has(x Act) bool { return a&x == x }

// End is the client's side of the transition: the state that follows, and what is to be done
// with it, under the client's lock. leaving: connection.close has come, which answers for all channels.
func (s State) End(by Cause, leaving bool) (State, Act) {
	switch by {
	case ByClientQuiet, ByClient:
		switch {
		case s == Refused: // the broker was faster
			return Refused, SayCloseOk
		case s == Owing:
			return Owing, SayCloseOk
		case s == Open && by == ByClientQuiet:
			return Closed, SayCloseOk | Uncount
		case s == Open:
			return Closing, Uncount
		}
	case ByConnectionQuiet, ByConnection:
		switch {
		case s == Open && by == ByConnection:
			return Closing, Uncount
		case s == Open || s == Refused:
			return Closed, Uncount
		case s == Owing:
			return Closed, 0
		}
	case ByCrash:
		if s == Open || s == Refused {
			return Closed, Uncount
		}
		return Closed, 0
	case ByClientOk:
		switch s {
		case Refused:
			return Closed, Uncount
		case Owing:
			return Closed, 0
		}
	case ByProxy:
		if s == Open {
			return Refused, SayClose
		}
	case ByBroker:
		switch s {
		case Open:
			return Refused, SayClose
		case Closing: // both at once: some brokers do not answer a close that crosses theirs
			if leaving {
				return Closed, Wake
			}
			return Owing, SayClose | SayCloseOk | Wake
		}
	case ByAnswer, ByOverdue:
		if s == Closing {
			if leaving {
				return Closed, Wake
			}
			return Closed, SayCloseOk | Wake
		}
	}
	return s, 0 // moves, the upstream's end: connection.close or a new place follow
}

// End is the broker's side of the transition: the seat that follows, and what is to be done
// with it, under the upstream's lock. silent: nobody waits for the broker's answer already.
func (s Seat) End(by Cause, silent bool) (Seat, Act) {
	switch by {
	case ByClient, ByConnection:
		if s == SeatOpen {
			return SeatClosing, SayClose
		}
	case ByClientQuiet, ByConnectionQuiet, ByCrash, ByMove, ByProxy:
		switch {
		case s == SeatOpen:
			return SeatClosing, SayClose | Silent | Ticket
		case by == ByProxy && (s == SeatProving || s == SeatKept): // there is no room for it
			return SeatClosing, SayClose | Silent | Through
		}
	case ByKeep:
		if s == SeatOpen {
			return SeatProving, SayBarrier | Silent | Ticket
		}
	case ByProven:
		if s == SeatOpen || s == SeatProving {
			return SeatKept, Keep | Silent | Through
		}
	case ByBroker:
		switch s {
		case SeatProving, SeatKept:
			return SeatFree, SayCloseOk | Free | Through
		case SeatOpen:
			return SeatFree, SayCloseOk | Free | Through | Tell
		case SeatClosing:
			// RabbitMQ still answers the close that crossed this one; other brokers do not,
			// and are done with the channel all the same.
			if silent {
				return SeatCrossed, SayCloseOk | Through
			}
			return SeatCrossed, SayCloseOk | Through | Tell
		}
	case ByAnswer:
		switch {
		case s != SeatClosing && s != SeatCrossed:
		case silent:
			return SeatFree, Free | Through
		default:
			return SeatFree, Free | Through | Tell
		}
	case ByOverdue:
		var act Act
		switch {
		case s == SeatProving:
			return s, Through
		case s != SeatClosing && s != SeatCrossed:
			return s, 0
		case silent:
			act = Through // nobody needs to wait for it any more
		default:
			act = Silent | Tell
		}
		if s == SeatCrossed {
			return SeatFree, act | Lose | Through
		}
		return s, act
	case ByUpstream:
		if s != SeatFree {
			if silent {
				return SeatFree, Through
			}
			return SeatFree, Through | Tell
		}
	}
	return s, 0
}
