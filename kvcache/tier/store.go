package tier

import (
	"context"
	"errors"
	"fmt"

	"github.com/longctx/longctx/kvcache/page"
)

// Store keeps pages by key. Its methods may be called from several goroutines.
// An error of the context ends a call early and is returned, wrapped.
//
// What a Store gives was checked: it is a sound page of the key asked for.
type Store interface {
	// Put keeps a copy of a page, in the format of package page; nil says that the
	// page is kept as the Store promises to keep it. The pages of a key are the
	// same, so one that is there already may stay. Bytes that are no sound page of
	// k are a *page.FormatError, a page for which there is no room a *FullError.
	Put(ctx context.Context, k page.Key, b []byte) error
	// Get appends the page of k to dst. A page that is not there is ErrNotFound,
	// one that is damaged a *CorruptError; it is removed, and the next Get has
	// ErrNotFound. After an error dst is returned as it was.
	Get(ctx context.Context, k page.Key, dst []byte) ([]byte, error)
	// Has reports whether the page of k is there; Get may still find it damaged.
	Has(ctx context.Context, k page.Key) (bool, error)
	// Delete removes the page of k. It is no error if there is none.
	Delete(ctx context.Context, k page.Key) error
	// Close ends all use. Other methods return ErrClosed from then on.
	Close() error
}

// Bounded is a Store with a limit, which lets pages go to make room. A Manager
// asks for them before it puts, and moves them to the next level.
type Bounded interface {
	Store
	// Victim is the page that goes first for a page of k of so many bytes. ok is
	// false where there is room, or will never be.
	Victim(k page.Key, bytes int64) (victim page.Key, ok bool)
}

// Usage is what a store of this package holds.
type Usage struct {
	Pages          int
	Bytes, Limit   int64 // Limit 0: none
	Evicted        int64 // pages let go to make room
	Corrupt        int64 // pages found damaged and removed
	OtherVersions  int   // of Disk: files that this version or machine cannot read, left alone
	Recovered      int   // of Disk: pages found when it was opened
	RecoveredBytes int64
}

// ErrNotFound is returned by Get for a key without a page.
var ErrNotFound = errors.New("tier: no such page")

// ErrClosed is returned after Close.
var ErrClosed = errors.New("tier: closed")

// CorruptError reports a page that a store held damaged. It was removed.
type CorruptError struct {
	Store string
	Key   page.Key
	Err   error // what is wrong with it
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("tier: %s: page of %v was damaged and is removed: %v", e.Store, e.Key, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// FullError reports a page for which there is no room. The store is as it was,
// but that other pages may have been let go.
type FullError struct {
	Store string
	Need  int64
	Limit int64 // of the store; 0: the device under it is full
	Err   error // that of the device, or nil
}

func (e *FullError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("tier: %s: no room for a page of %d bytes: %v", e.Store, e.Need, e.Err)
	}
	return fmt.Sprintf("tier: %s: no room for a page of %d bytes, limit %d", e.Store, e.Need, e.Limit)
}

func (e *FullError) Unwrap() error { return e.Err }

// StoreError reports what the device or server under a store answered.
type StoreError struct {
	Store, Op string // "disk", "Put"
	Key       page.Key
	Err       error
}

func (e *StoreError) Error() string {
	return fmt.Sprintf("tier: %s: %s of page %v: %v", e.Store, e.Op, e.Key, e.Err)
}

func (e *StoreError) Unwrap() error { return e.Err }

// OptionError reports an option outside what is allowed.
type OptionError struct{ Name, Got, Want string }

func (e *OptionError) Error() string {
	return fmt.Sprintf("tier: %s is %s, want %s", e.Name, e.Got, e.Want)
}
