/**
 * The key or token of this tab. It comes in the fragment of a link, which browsers send to no server, and leaves the address bar at
 * once. It is kept for the tab, and beyond that only where the user asks for it.
 */

const NAME = "adclick.key";
let credential = "";

/** Take the key from the address, if it has one, else the one that is kept. */
export function begin() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const fromLink = fragment.get("key") ?? fragment.get("token");
  if (fromLink !== null) {
    fragment.delete("key");
    fragment.delete("token");
    const rest = fragment.toString();
    history.replaceState(null, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
    signIn(fromLink, false);
    return;
  }
  // Where storage is disabled, the one of this page stays.
  credential = credential || read(sessionStorage) || read(localStorage);
}

/** @param {Storage} storage */
function read(storage) {
  try {
    return storage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
}

/** @param {string} value @param {boolean} remember beyond this tab */
export function signIn(value, remember) {
  credential = value.trim();
  try {
    sessionStorage.setItem(NAME, credential);
    if (remember) localStorage.setItem(NAME, credential);
  } catch {
    // Storage may be disabled; the key then lasts until the page is left.
  }
}

export function signOut() {
  credential = "";
  try {
    sessionStorage.removeItem(NAME);
    localStorage.removeItem(NAME);
  } catch {
    // as above
  }
}

export function key() {
  return credential;
}
