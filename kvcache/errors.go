package kvcache

import "fmt"

// ValueError reports a field of a Config or an argument outside what is
// allowed.
type ValueError struct {
	Name      string // "Config.Pages", "Drop: from"
	Got, Want string
}

func (e *ValueError) Error() string {
	return fmt.Sprintf("kvcache: %s is %s, want %s", e.Name, e.Got, e.Want)
}

func valueError(name string, got any, want string, args ...any) error {
	return &ValueError{Name: name, Got: fmt.Sprint(got), Want: fmt.Sprintf(want, args...)}
}

// UnknownSequenceError reports an ID that this cache never gave, or whose
// sequence was freed.
type UnknownSequenceError struct{ ID ID }

func (e *UnknownSequenceError) Error() string {
	return fmt.Sprintf("kvcache: no sequence %d: it was freed, or is of another cache", e.ID)
}

// OutOfPagesError reports that a call needs more pages than are free. Nothing
// was changed; free, truncate or swap out sequences, or extend fewer, and try
// again.
type OutOfPagesError struct {
	Need  int64 // pages for the whole call, copies of shared pages included
	Free  int   // those that others have reserved do not count
	Coded bool  // coded pages, of a Restore or Import
}

func (e *OutOfPagesError) Error() string {
	kind := ""
	if e.Coded {
		kind = "coded "
	}
	return fmt.Sprintf("kvcache: %d %spages needed, %d free", e.Need, kind, e.Free)
}

// TooLongError reports a length or a position that int32 tables cannot hold.
type TooLongError struct {
	What string // "length of sequence 7"
	Got  string
}

func (e *TooLongError) Error() string {
	return fmt.Sprintf("kvcache: %s is %s, want at most 2³¹−1", e.What, e.Got)
}

func tooLong(id ID, n, more int) error {
	return &TooLongError{fmt.Sprintf("length of sequence %d", id), fmt.Sprintf("%d+%d", n, more)}
}

// SlotError reports a slot into which Append must not write.
type SlotError struct {
	Index  int // in the slots of the call
	Slot   int32
	Reason string
}

func (e *SlotError) Error() string {
	return fmt.Sprintf("kvcache: slots[%d] is %d: %s", e.Index, e.Slot, e.Reason)
}

// CodedPageError reports a Truncate to a length within a coded page. Nothing
// was changed; From and To, as lengths, are possible.
type CodedPageError struct {
	Sequence ID
	Keys     int // the length asked for
	From, To int // the page has the keys From <= j < To
}

func (e *CodedPageError) Error() string {
	return fmt.Sprintf("kvcache: Truncate of sequence %d to %d keys, within a coded page; want %d or %d", e.Sequence, e.Keys, e.From, e.To)
}

// CodedRowsError reports an Apply that keeps or merges rows of a coded page, but
// not all of them as they are, from the start of a page on. Nothing was changed.
type CodedRowsError struct {
	Sequence ID
	Key      int // an ordinal that was to be copied
	From, To int // its page has the keys From <= j < To
}

func (e *CodedRowsError) Error() string {
	return fmt.Sprintf("kvcache: Apply to sequence %d copies key %d of a coded page, want the keys %d to %d kept all at the start of a page, or none", e.Sequence, e.Key, e.From, e.To-1)
}
