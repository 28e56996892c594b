// What the broker's refusal of a login means: a verdict on who it is, a limit that is reached, or
// a throttle. RabbitMQ and others have one code for all three; only the texts differ.

package proxy

import (
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// answered tells whether an error is the broker's answer to a login, whatever it means.
func answered(e *amqp.Error) bool { return e.Code == amqp.AccessRefused || e.Code == amqp.NotAllowed }

// refuses tells whether an error says that the broker will not have this user, secret or vhost.
// Anything else passes, and is no reason to forget whom the broker has accepted: a limit, a
// throttle, or what an unknown broker says with these codes.
func refuses(e *amqp.Error) bool {
	switch e.Code {
	case amqp.AccessRefused:
		return !throttled(e)
	case amqp.NotAllowed:
		// RabbitMQ: vhost X not found, access to vhost 'X' refused for user 'Y'.
		// LavinMQ: vhost not found, 'Y' doesn't have access to 'X'.
		t := e.Text
		return strings.Contains(t, "vhost") && strings.HasSuffix(t, "not found") ||
			strings.Contains(t, "access to vhost '") && strings.Contains(t, "' refused for user '") && strings.HasSuffix(t, "'") ||
			strings.Contains(t, "' doesn't have access to '") && strings.HasSuffix(t, "'")
	}
	return false
}

// refusedSecret tells whether the broker has refused user and secret.
func refusedSecret(e *amqp.Error) bool { return e.Code == amqp.AccessRefused && refuses(e) }

// throttled tells whether the broker has had too many logins, of whomever. What RabbitMQ says of a
// wrong password is not looked into: the words may be those of a user's name.
func throttled(e *amqp.Error) bool {
	if strings.Contains(e.Text, "Login was refused") || strings.Contains(e.Text, "user '") {
		return false
	}
	t := strings.ToLower(e.Text)
	for _, words := range []string{"too many requests", "throttl", "limit exceeded"} {
		if strings.Contains(t, words) {
			return true
		}
	}
	return false
}

// limitReached tells whether a limit of the broker's on numbers (of connections, of channels) is
// what refuses. User and secret have been found right then.
func limitReached(e *amqp.Error) bool {
	return e.Code == amqp.NotAllowed &&
		(strings.HasSuffix(e.Text, "is reached") || strings.Contains(e.Text, "has reached the maximum allowed"))
}
