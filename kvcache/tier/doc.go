// Package tier keeps pages of a cache in memory of the host, on disk and in
// remote stores, in the format of package page. The cache itself knows nothing of
// it: a page leaves it by kvcache.SwapSpace.Export and comes back by Import.
//
//	blob, err := space.Export(ctx, sequence, k, key, nil)
//	err = manager.Put(ctx, key, blob)      // returns at once, waits when queues are full
//	…
//	blob, err = manager.Get(ctx, key, nil) // from the first level that has it
//	err = space.Import(ctx, sequence, blob)
//
// Pages that an index holds go the same way: kvcache.Cache.Start makes a sequence
// of them, and Hold takes those of one that was imported.
//
// A Store keeps pages by key: Host in memory, Disk in files, and packages
// tier/redis and tier/s3, modules of their own, on servers. A Manager chains
// them. tiertest holds what every Store must do.
//
// # What holds
//
//   - A page that a Store gives is whole and of the key that was asked for: its
//     checksums, its namespace and its hash are compared each time. What is
//     damaged gives a *CorruptError once and is removed.
//   - A page that Disk.Put has returned nil for is there when the folder is opened
//     again, however the process ended; with the default of syncing also when the
//     machine stopped. A limit, a Delete and damage to the disk remove it.
//   - A call ends when its context does.
//   - Errors have types: *FullError, *CorruptError, *StoreError, ErrNotFound,
//     ErrClosed, and *page.FormatError for what is no page.
//   - Memory that waits to be written is bounded by the queues of the levels.
//   - The lock of a store is not held while a page is read or written.
package tier
