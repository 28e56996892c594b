// Reply codes and the errors that carry them.

package amqp

import (
	"fmt"
	"strings"
)

// Reply codes (spec, "constants"). Which of them close a connection is what RabbitMQ does.
const (
	ReplySuccess       = 200
	ContentTooLarge    = 311
	NoRoute            = 312
	NoConsumers        = 313
	ConnectionForced   = 320
	InvalidPath        = 402
	AccessRefused      = 403
	NotFound           = 404
	ResourceLocked     = 405
	PreconditionFailed = 406
	FrameError         = 501
	SyntaxError        = 502
	CommandInvalid     = 503
	ChannelError       = 504
	UnexpectedFrame    = 505
	ResourceError      = 506
	NotAllowed         = 530
	NotImplemented     = 540
	InternalError      = 541
)

// IsHard reports whether a reply code closes the connection rather than a channel.
func IsHard(code uint16) bool {
	switch code {
	case ConnectionForced, InvalidPath, FrameError, SyntaxError, CommandInvalid, ChannelError,
		UnexpectedFrame, ResourceError, NotAllowed, NotImplemented, InternalError:
		return true
	}
	return false
}

// CodeName is the upper-case name that begins RabbitMQ's texts.
func CodeName(code uint16) string {
	switch code {
	case ConnectionForced:
		return "CONNECTION_FORCED"
	case InvalidPath:
		return "INVALID_PATH"
	case AccessRefused:
		return "ACCESS_REFUSED"
	case NotFound:
		return "NOT_FOUND"
	case ResourceLocked:
		return "RESOURCE_LOCKED"
	case PreconditionFailed:
		return "PRECONDITION_FAILED"
	case FrameError:
		return "FRAME_ERROR"
	case SyntaxError:
		return "SYNTAX_ERROR"
	case CommandInvalid:
		return "COMMAND_INVALID"
	case ChannelError:
		return "CHANNEL_ERROR"
	case UnexpectedFrame:
		return "UNEXPECTED_FRAME"
	case ResourceError:
		return "RESOURCE_ERROR"
	case NotAllowed:
		return "NOT_ALLOWED"
	case NotImplemented:
		return "NOT_IMPLEMENTED"
	case InternalError:
		return "INTERNAL_ERROR"
	}
	return fmt.Sprintf("CODE_%d", code)
}

// Error is a reply code with its text and the method at fault, as a close carries them.
type Error struct {
	Code   uint16
	Text   string
	Method Method // 0 when no method is at fault
}

func (e *Error) Error() string { return fmt.Sprintf("%d %s", e.Code, e.Text) }

// Words is the text without the code's name.
func (e *Error) Words() string { return strings.TrimPrefix(e.Text, CodeName(e.Code)+" - ") }

// Errorf makes an Error whose text begins with the code's name, as RabbitMQ's do.
func Errorf(code uint16, m Method, format string, args ...any) *Error {
	return &Error{Code: code, Method: m, Text: CodeName(code) + " - " + fmt.Sprintf(format, args...)}
}
