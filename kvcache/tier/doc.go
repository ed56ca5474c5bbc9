// Package tier keeps pages of a cache in memory of the host, on disk and in
// remote stores, in the format of package page.
package tier
